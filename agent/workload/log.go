package workload

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// toOwner sends what containerd's client says to the owner's log. Its own way
// is standard error, where addresses and image names would meet the console.
type toOwner struct{ log *slog.Logger }

func (toOwner) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (t toOwner) Fire(e *logrus.Entry) error {
	args := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		args = append(args, k, fmt.Sprint(v))
	}
	t.log.Warn("containerd's client: "+e.Message, args...)
	return nil
}

// withLog is ctx with the client's messages turned to the owner.
func (w *Workload) withLog(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.AddHook(toOwner{w.opt.Log})
	return log.WithLogger(ctx, logrus.NewEntry(l))
}
