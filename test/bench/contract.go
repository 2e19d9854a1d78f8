package main

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/secret"
	"hpcr/contract"
	"hpcr/test/peers"
)

// contracts that are read: KiB of user-data, and whether a container mounts the
// contract's text, which then is written out.
var contracts = []struct {
	kib     int
	mounted bool
}{{64, false}, {1 << 10, false}, {4 << 10, false}, {15 << 10, false}, {15 << 10, true}}

const (
	large = 3 // of contracts: the largest of a kind with the first
	mib   = 1 << 20
)

// sample is an encrypted and signed contract of a wanted size.
type sample struct {
	image, signer            *rsa.PrivateKey
	mounted                  bool
	workload, env, signature string
	userData, cidata         []byte
}

// contractCost measures reading a contract without a guest around it: the
// library against the cryptography that no reader can avoid, and the applet's
// own process. Times are of the processor, for the machine may be shared.
func contractCost(applet, dir string) ([]figure, error) {
	image, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return nil, err
	}
	signer, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return nil, err
	}
	var figures []figure
	var used []time.Duration
	var length []int
	for i, c := range contracts {
		s := &sample{image: image, signer: signer, mounted: c.mounted}
		if err := s.make(c.kib << 10); err != nil {
			return nil, err
		}
		if i == 0 {
			f, err := s.ratio()
			if err != nil {
				return nil, err
			}
			figures = append(figures, f)
		}
		t, peak, err := s.applet(applet, dir)
		if err != nil {
			return nil, fmt.Errorf("a contract of %d KiB: %w", c.kib, err)
		}
		used, length = append(used, t), append(length, len(s.userData))
		name := fmt.Sprintf("contract: memory of its process, %d KiB", c.kib)
		if c.mounted {
			name += ", mounted by a container"
		}
		f := figure{Name: name, Unit: "MiB", Value: float64(peak) / mib, Peer: "4 × contract + 32 MiB", PeerValue: 4*float64(len(s.userData))/mib + 32, most: 1}
		r := f.Value / f.PeerValue
		f.Ratio = &r
		figures = append(figures, f)
	}
	perMiB := (used[large] - used[0]).Seconds() / float64(length[large]-length[0]) * mib
	return append(figures,
		figure{Name: "contract: its process with its start, 64 KiB", Unit: "s", Value: used[0].Seconds()},
		figure{Name: "contract: its process, each further MiB", Unit: "s", Value: perMiB}), nil
}

// make fills an archive until user-data has about the size.
func (s *sample) make(size int) error {
	ca, err := peers.NewCA("bench authority")
	if err != nil {
		return err
	}
	client, err := ca.Client("bench guest")
	if err != nil {
		return err
	}
	// base64 in base64: 9 bytes of the archive are 16 of the token.
	filler := make([]byte, max(0, (size-14<<10)*9/16))
	if _, err := rand.Read(filler); err != nil {
		return err
	}
	compose := "services:\n  web:\n    image: registry.example.com/web@sha256:" + strings.Repeat("a", 64) + "\n"
	if s.mounted {
		compose += "    volumes: ['/var/hyperprotect/:/var/hyperprotect/:ro']\n"
	}
	archive, err := peers.Archive(map[string]string{"docker-compose.yaml": compose, "filler": string(filler)})
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&s.signer.PublicKey)
	if err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	text, err := peers.Contract{
		Workload: peers.Workload{Type: "workload", Compose: &peers.Compose{Archive: archive}, Volumes: map[string]peers.WorkloadVolume{"data": {Seed: "bench-workload-seed"}}},
		Env:      peers.Env{Type: "env", Logging: peers.SyslogTo(6514, ca, client), Volumes: map[string]peers.EnvVolume{"data": {Seed: "bench-deployer-seed"}}, SigningKey: peers.Base64(public)},
	}.YAML()
	if err != nil {
		return err
	}
	sections, err := peers.Sections(text)
	if err != nil {
		return err
	}
	if s.workload, err = contract.Seal(contract.PrefixHPCR, &s.image.PublicKey, []byte(sections["workload"])); err != nil {
		return err
	}
	if s.env, err = contract.Seal(contract.PrefixHPCR, &s.image.PublicKey, []byte(sections["env"])); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(s.workload + s.env))
	raw, err := rsa.SignPKCS1v15(rand.Reader, s.signer, crypto.SHA256, sum[:])
	if err != nil {
		return err
	}
	s.signature = base64.StdEncoding.EncodeToString(raw)
	s.userData = fmt.Appendf(nil, "workload: %s\nenv: %s\nenvWorkloadSignature: %s\n", s.workload, s.env, s.signature)
	s.cidata, err = contract.WriteCidata(contract.Files{UserData: s.userData, MetaData: []byte("local-hostname: bench\n")})
	return err
}

func (s *sample) keyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.image)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ratio compares the library, from the device's bytes to a verified plan, with
// the same contract's bare cryptography. Medians of turns.
func (s *sample) ratio() (figure, error) {
	text, err := s.keyPEM()
	if err != nil {
		return figure{}, err
	}
	keys := []*secret.Secret{secret.New(text)}
	const turns = 21
	var ours, bare []time.Duration
	for range turns {
		for _, side := range []struct {
			into *[]time.Duration
			do   func() error
		}{
			{&ours, func() error {
				v, err := contract.Process(contract.Input{Cidata: s.cidata, Keys: keys, Policy: contract.DefaultPolicy(false), Now: time.Now()})
				if err == nil {
					v.Wipe()
				}
				return err
			}},
			{&bare, s.cryptography},
		} {
			before := processor()
			if err := side.do(); err != nil {
				return figure{}, err
			}
			*side.into = append(*side.into, processor()-before)
		}
	}
	slices.Sort(ours)
	slices.Sort(bare)
	f := figure{Name: "contract: open and verify, 64 KiB", Unit: "s", most: 1.3, Value: ours[turns/2].Seconds(),
		Peer: "bare RSA, PBKDF2, AES, SHA", PeerValue: bare[turns/2].Seconds()}
	r := f.Value / f.PeerValue
	f.Ratio = &r
	return f, nil
}

// cryptography is what every reader of the contract has to compute: the hashes
// of the record, two tokens, one signature.
func (s *sample) cryptography() error {
	for _, b := range [][]byte{s.cidata, s.userData, []byte(s.workload), []byte(s.env), []byte(s.signature)} {
		sha256.Sum256(b)
	}
	for _, token := range []string{s.workload, s.env} {
		part := strings.Split(token, ".")
		sealed, err := base64.StdEncoding.DecodeString(part[1])
		if err != nil {
			return err
		}
		data, err := base64.StdEncoding.DecodeString(part[2])
		if err != nil {
			return err
		}
		//lint:ignore SA1019 the format's padding
		password, err := rsa.DecryptPKCS1v15(nil, s.image, sealed)
		if err != nil {
			return err
		}
		derived, err := pbkdf2.Key(sha256.New, string(password), data[8:16], 10000, 48)
		if err != nil {
			return err
		}
		block, err := aes.NewCipher(derived[:32])
		if err != nil {
			return err
		}
		cipher.NewCBCDecrypter(block, derived[32:]).CryptBlocks(data[16:], data[16:])
	}
	value, err := base64.StdEncoding.DecodeString(s.signature)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(s.workload + s.env))
	return rsa.VerifyPKCS1v15(&s.signer.PublicKey, crypto.SHA256, sum[:], value)
}

// processor is the time that this process has computed.
func processor() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// applet runs the guest's contract applet on this machine as the agent does, but
// for namespaces and the control group, and says what it used of the processor
// and of memory: the highest resident size and the answer, without the pages of
// the program's own file, which all applets share, and of the device's, which
// are the agent's.
func (s *sample) applet(program, dir string) (used time.Duration, peak int, err error) {
	key, err := s.keyPEM()
	if err != nil {
		return 0, 0, err
	}
	said, says, err := os.Pipe()
	if err != nil {
		return 0, 0, err
	}
	defer said.Close()
	files := []*os.File{says}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, file := range []struct {
		name string
		data []byte
	}{{"device", s.cidata}, {"key", key}} {
		name := filepath.Join(dir, file.name)
		if err := os.WriteFile(name, file.data, 0o600); err != nil {
			return 0, 0, err
		}
		f, err := os.Open(name)
		if err != nil {
			return 0, 0, err
		}
		files = append(files, f)
	}
	order, err := json.Marshal(map[string]any{"policy": contract.DefaultPolicy(false), "now": time.Now(), "keys": 1})
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.Command(program)
	cmd.Args = []string{"contract"}
	cmd.Env = []string{"GOGC=off", "GOMAXPROCS=1", "GOMEMLIMIT=280MiB"}
	out, err := os.Create(filepath.Join(dir, "answer"))
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, os.Stderr, files
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		err = errors.Join(err, cmd.Process.Kill())
		_ = cmd.Wait() // killed: it waits for that
		used = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}()
	all := &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	// Without the right to raise it, the right to lock may be there all the same.
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_MEMLOCK, all, nil); err != nil && !errors.Is(err, unix.EPERM) {
		return 0, 0, err
	}
	if _, err := in.Write(order); err != nil {
		return 0, 0, err
	}
	if err := errors.Join(in.Close(), says.Close()); err != nil {
		return 0, 0, err
	}
	files = files[1:]
	status := make([]byte, 1)
	if _, err := io.ReadFull(said, status); err != nil {
		return 0, 0, fmt.Errorf("the applet ended without an answer: %w", err)
	}
	if status[0] != 0 {
		return 0, 0, fmt.Errorf("the applet refuses the contract: status %d", status[0])
	}
	answer, err := out.Stat()
	if err != nil {
		return 0, 0, err
	}
	peak, err = highest(cmd.Process.Pid)
	return 0, peak + int(answer.Size()), err
}

// highest is a process's greatest resident size without the pages of files.
func highest(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	kib := map[string]int{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB")); err == nil {
			kib[name] = n
		}
	}
	if kib["VmHWM"] == 0 || kib["RssFile"]+kib["RssShmem"] == 0 {
		return 0, errors.New("the kernel does not tell a process's memory")
	}
	// In a guest files lie in memory: theirs are shared pages.
	return (kib["VmHWM"] - kib["RssFile"] - kib["RssShmem"]) << 10, nil
}
