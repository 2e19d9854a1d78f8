package initramfs

import (
	"bytes"
	"compress/gzip"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

var compression = "zstd"

// compress packs the base archive in a form the kernel unpacks, padded so that
// the keys archive can follow uncompressed.
func compress(raw []byte) ([]byte, error) {
	var out bytes.Buffer
	switch compression {
	case "none":
		out.Write(raw)
	case "gzip":
		w, err := gzip.NewWriterLevel(&out, 1)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(raw); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	case "zstd":
		w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(raw); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	case "lz4":
		w := lz4.NewWriter(&out)
		if err := w.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9), lz4.ConcurrencyOption(1)); err != nil {
			return nil, err
		}
		if _, err := w.Write(raw); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	for out.Len()%512 != 0 {
		out.WriteByte(0)
	}
	return out.Bytes(), nil
}
