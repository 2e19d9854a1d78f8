package storage

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"time"
)

const (
	maxLog     = 1 << 20 // bytes of one child
	maxLogLine = 16 << 10
)

// listen makes the pipe through which a child logs, and passes on what comes
// until heard is called. The child writes it to be read by us, but has read
// hostile bytes: sizes are bounded, values are quoted by the log.
func listen(log *slog.Logger) (w *os.File, heard func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(io.LimitReader(r, maxLog))
		lines.Buffer(nil, maxLogLine)
		for lines.Scan() {
			repeat(log, lines.Bytes())
		}
	}()
	return w, func() {
		w.Close()
		// A child that hangs in the kernel keeps its end open.
		_ = r.SetReadDeadline(time.Now().Add(time.Second)) // a pipe takes deadlines
		<-done
		r.Close()
	}, nil
}

func repeat(log *slog.Logger, line []byte) {
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil {
		return // not a line of slog's
	}
	var level slog.Level
	text, _ := fields[slog.LevelKey].(string)
	if level.UnmarshalText([]byte(text)) != nil {
		level = slog.LevelInfo
	}
	message, _ := fields[slog.MessageKey].(string)
	for _, key := range []string{slog.TimeKey, slog.LevelKey, slog.MessageKey} {
		delete(fields, key)
	}
	var attrs []slog.Attr
	for key, v := range fields {
		attrs = append(attrs, slog.Any(key, v))
	}
	log.LogAttrs(context.Background(), level, message, attrs...)
}
