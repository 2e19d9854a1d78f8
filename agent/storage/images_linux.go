package storage

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/sandbox"
	"hpcr/disk"
	"hpcr/disk/images"
)

const (
	imagesPath   = "/bin/disk-images"
	imagesMemory = 64 << 20
	maxContents  = 4 << 20   // bytes of what the child says is on the disk
	maxPiece     = 256 << 10 // bytes of one answer
	pieceLimit   = 30 * time.Second
	contentLimit = 2 * time.Minute // for all headers of a disk, one after the other
	endLimit     = 5 * time.Second
)

// contents is the child's first answer.
type contents struct {
	Blobs map[string]int64  `json:"blobs"` // bytes, by SHA-256
	Names map[string]string `json:"names"` // NAME:TAG → SHA-256
}

// Images is a disk with images, read by a child that lives until Close: a disk
// that stops answering holds the child. Its methods may be called side by side.
type Images struct {
	contents
	asks, answers *os.File
	cancel        context.CancelFunc
	ended         chan struct{}
	end           error // of the child, once it has ended

	mu     sync.Mutex // one question at a time
	broken error      // the conversation is out of step
}

// OpenImages opens the disk with images. limit bounds how long it stays open.
func OpenImages(ctx context.Context, exclude []string, limit time.Duration) (*Images, error) {
	asked, asks, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, says, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, asked.Close(), asks.Close())
	}
	in, err := json.Marshal(order{Exclude: exclude})
	if err != nil {
		return nil, errors.Join(err, asked.Close(), asks.Close(), answers.Close(), says.Close())
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	i := &Images{asks: asks, answers: answers, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(i.ended)
		i.end = sandbox.Spawn(ctx, sandbox.Child{
			Path: imagesPath, Name: "images", Stdin: in, Files: []*os.File{asked, says}, Root: true,
			Memory: imagesMemory, Output: maxAnswer, Limit: limit,
		}, func(answer []byte, refused bool) error {
			if refused {
				return sandbox.ReadRefusal(answer, "HPL06004E", "the disk with the serial images was refused without a reason")
			}
			return nil
		})
		asked.Close()
		says.Close() // the last: whoever waits for an answer sees its end
	}()
	if err := i.listen(contentLimit); err != nil {
		return nil, i.fail(err)
	}
	return i, nil
}

// listen takes the first answer.
func (i *Images) listen(limit time.Duration) error {
	text, err := i.answer(maxContents, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &i.contents); err != nil {
		return fmt.Errorf("the image child's contents: %w", err)
	}
	for _, size := range i.Blobs {
		if size < 0 {
			return errors.New("the image child's contents: a blob below nothing")
		}
	}
	return nil
}

// fail ends a child that gave no first answer, and says why it did not.
func (i *Images) fail(err error) error {
	end := i.Close()
	var known *hpl.Error
	if errors.As(end, &known) {
		return known
	}
	return hpl.Wrap(errors.Join(err, end), "HPL02120E", "", "the disk with the serial images does not answer: check it on the host")
}

// Size is a blob's, in bytes, if the disk says that it has it.
func (i *Images) Size(key string) (int64, bool) {
	n, ok := i.Blobs[key]
	return n, ok
}

// Named is the SHA-256 that the disk gives for NAME:TAG, in hex.
func (i *Images) Named(name string) (string, bool) {
	key, ok := i.Names[name]
	return key, ok
}

// ReadBlob reads from a blob's offset at, some bytes at least. It waits for the
// disk no longer than pieceLimit. What it reads is the host's.
func (i *Images) ReadBlob(key string, p []byte, at int64) (int, error) {
	p = p[:min(len(p), maxPiece)]
	q := question{At: at, Size: uint32(len(p))}
	sum, err := hex.DecodeString(key)
	if err != nil || len(sum) != len(q.Sum) {
		return 0, errors.New("no SHA-256 in hex")
	}
	copy(q.Sum[:], sum)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.broken != nil {
		return 0, i.broken
	}
	if i.broken = i.ask(q); i.broken != nil {
		return 0, i.broken
	}
	b, err := i.answer(maxPiece, pieceLimit)
	if err == nil && len(b) != len(p) {
		err = errors.New("the disk with images cannot be read")
	}
	if err != nil {
		i.broken = err
		return 0, err
	}
	return copy(p, b), nil
}

// question is what the agent asks for. Size 0 is not asked.
type question struct {
	Sum  [32]byte
	At   int64
	Size uint32
}

func (i *Images) ask(q question) error {
	if err := i.asks.SetWriteDeadline(time.Now().Add(pieceLimit)); err != nil {
		return err
	}
	return binary.Write(i.asks, binary.BigEndian, q)
}

// answer reads a length and as many bytes.
func (i *Images) answer(most uint32, limit time.Duration) ([]byte, error) {
	if err := i.answers.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	var n uint32
	if err := binary.Read(i.answers, binary.BigEndian, &n); err != nil {
		return nil, fmt.Errorf("the disk with images does not answer: %w", err)
	}
	if n > most {
		return nil, errors.New("the image child's answer is too long")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(i.answers, b)
	return b, err
}

// Close ends the child: at once if it listens. Its error says that the child
// did not end well. A second call gives the same.
func (i *Images) Close() error {
	i.asks.Close()
	select {
	case <-i.ended:
	case <-time.After(endLimit):
		i.cancel()
		<-i.ended // bounded: Spawn leaves a child behind that hangs in the kernel
	}
	i.cancel()
	i.answers.Close()
	return i.end
}

// ImagesMain is the applet that reads a disk with images: the order on stdin,
// questions and answers on its files; a refusal to stdout.
func ImagesMain() { sandbox.Finish(imagesMain()) }

func imagesMain() int {
	err := imagesChild(sandbox.File(0, "questions"), sandbox.File(1, "answers"))
	if err == nil {
		return 0
	}
	if sandbox.Refuse(os.Stdout, err) != nil {
		return 2
	}
	return 1
}

func imagesChild(questions io.Reader, answers *os.File) error {
	defer answers.Close() // the agent sees the end
	if err := sandbox.ConfineRoot(); err != nil {
		return err
	}
	var in order
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxOrder)).Decode(&in); err != nil {
		return fmt.Errorf("order: %w", err)
	}
	d, err := disk.OpenImages(in.Exclude)
	if err != nil {
		return err
	}
	defer d.Close()
	return serveImages(d.Layout, d.ReadBlob, questions, answers)
}

// serveImages answers questions until there are no more.
func serveImages(l *images.Layout, read func(key string, p []byte, at int64) error, questions io.Reader, answers io.Writer) error {
	first := contents{Blobs: map[string]int64{}, Names: l.Names}
	for key, s := range l.Blobs {
		first.Blobs[key] = s.Size
	}
	text, err := json.Marshal(first)
	if err == nil {
		err = say(answers, text)
	}
	buf := make([]byte, maxPiece)
	for err == nil {
		var q question
		if err := binary.Read(questions, binary.BigEndian, &q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		p := buf[:min(q.Size, maxPiece)]
		if read(images.Sum(q.Sum), p, q.At) != nil {
			p = nil // shorter than asked for: it cannot be read
		}
		err = say(answers, p)
	}
	return err
}

func say(to io.Writer, b []byte) error {
	if err := binary.Write(to, binary.BigEndian, uint32(len(b))); err != nil {
		return err
	}
	_, err := to.Write(b)
	return err
}
