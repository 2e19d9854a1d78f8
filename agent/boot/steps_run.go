package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/agent/sandbox"
	"hpcr/agent/secret"
	"hpcr/agent/storage"
	"hpcr/agent/workload"
	"hpcr/contract"
	"hpcr/contract/compose"
	"hpcr/network"
)

// startContainerd starts the daemon, which is started again whenever it dies,
// and connects to it.
func (g *Guest) startContainerd(ctx context.Context) error {
	d := &daemon{path: "/bin/containerd", group: sandbox.Daemon, log: g.log, output: g.daemonOutput("hpcr-containerd"), ended: func(err error) {
		g.note(event.ChildEnded, event.Warning, "containerd ended and is started again", slog.String("cause", err.Error()))
	}}
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := d.start(lasting)
	g.stop = func() {
		cancel()
		stop()
	}
	work, err := g.newWorkload(ctx)
	if err != nil {
		g.stop()
		return err
	}
	g.work = work
	go d.watch(lasting, askEvery, work.Alive)
	return nil
}

func (g *Guest) newWorkload(ctx context.Context) (*workload.Workload, error) {
	tls, err := network.RegistryConfig(rootsFile, g.plan.CACerts, g.now)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL06004E", "/env/cacerts", "give a list of one NAME: base64 of a PEM certificate")
	}
	resolv, err := os.ReadFile(resolvConf)
	if err != nil {
		return nil, err
	}
	roots := []string{attest.Dir}
	for _, v := range g.plan.Volumes {
		if !contract.GuestsOwn(v.Mount) {
			roots = append(roots, v.Mount)
		}
	}
	var auths []workload.Auth
	for _, a := range g.plan.Auths {
		auths = append(auths, workload.Auth{Host: a.Host, Username: secret.FromString(a.Username), Password: a.Password})
	}
	lookaside := map[string]string{}
	for _, l := range g.plan.Lookaside {
		lookaside[l.Host] = l.URL
	}
	return workload.New(ctx, workload.Options{
		Trust: g.plan.Trust, Lookaside: lookaside, Now: g.now,
		Project: g.plan.Compose, Auths: auths, TLS: tls, Roots: roots, ResolvConf: resolv, Profile: containerProfile, Log: g.log,
		NewBridge: func(internal bool) (workload.Bridge, error) {
			return g.net.NewBridge(network.BridgeOptions{Internal: internal})
		},
		Output: g.output, StreamEnded: g.streamEnded,
	})
}

func (g *Guest) stopContainerd(ctx context.Context) error {
	err := g.work.Stop(ctx)
	g.stop()
	return err
}

// resolveImages settles every image's digest, by the contract or by a
// signature, before the record is signed; that what is pulled has this digest is
// checked when it is pulled.
func (g *Guest) resolveImages(ctx context.Context) error {
	for _, v := range g.plan.Volumes {
		if v.Mount != contract.ImageStore {
			continue
		}
		select {
		case <-g.disksEnd: // if with an error, ctx ends as well
		case <-ctx.Done():
			return ctx.Err()
		}
		g.work.UseStore(v.Mount)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	if err := g.openImages(ctx); err != nil {
		return err
	}
	images, err := g.work.Resolve(ctx)
	if err != nil {
		return errors.Join(err, g.closeImages(ctx))
	}
	for i, s := range g.plan.Compose.Services {
		text := images[i].Ref + " verifiedBy " + images[i].By
		if images[i].OnDisk {
			text += " from disk"
		}
		g.record.Add(attest.Fact{Name: "Image", Text: text})
		if p := s.Powers(); len(p) > 0 {
			g.record.Add(attest.Fact{Name: "Privileged", Text: s.Name + " " + strings.Join(p, " ")})
		}
	}
	return nil
}

// openImages opens the disk with images, if the host has attached one.
func (g *Guest) openImages(ctx context.Context) error {
	if !g.imageDisk {
		return nil
	}
	disk, err := storage.OpenImages(ctx, g.notDisks(), imagesLimit)
	if err != nil {
		return err
	}
	g.images = disk
	g.work.UseDisk(disk)
	g.log.Info("a disk with images is attached: what it holds is not asked of a registry", "blobs", len(disk.Blobs), "names", len(disk.Names))
	return nil
}

// closeImages lets go of the disk with images.
func (g *Guest) closeImages(context.Context) error {
	if g.images == nil {
		return nil
	}
	err := g.images.Close()
	g.images = nil
	return err
}

// imagesLimit is for the phases from images to pull together.
const imagesLimit = time.Hour

// resolveLimit bounds the registries' answers. What phase images has besides is
// for the disks, if one of them is the image store.
const resolveLimit = 5 * time.Minute

// pullImages is the last to need the registries' passwords.
func (g *Guest) pullImages(ctx context.Context) error {
	err := g.work.Pull(ctx)
	for _, a := range g.plan.Auths {
		a.Password.Wipe()
	}
	if err = errors.Join(err, g.closeImages(ctx)); err != nil {
		return err
	}
	for _, s := range g.plan.Compose.Services {
		g.note(event.ImageVerified, event.Notice, "an image has the content that its digest names", slog.String("service", s.Name), slog.String("image", s.Image.Ref()))
	}
	return nil
}

// startContainers writes the project's files and starts its services.
func (g *Guest) startContainers(ctx context.Context) error {
	if err := writeProject(g.plan.Compose); err != nil {
		return hpl.Wrap(err, "HPL06002E", "/workload/compose/archive", "the archive could not be unpacked in the guest: give it more memory")
	}
	if err := sandbox.LimitWorkload(); err != nil {
		return err
	}
	if err := g.openEndpoints(); err != nil {
		return err
	}
	if err := g.serveManagement(); err != nil {
		return err
	}
	g.Console.Unit("hpcr-container", "Starting workload containers...")
	if err := g.work.Start(ctx); err != nil {
		// Containers hold the volumes that are closed before containerd is.
		return errors.Join(err, g.stopContainers(context.WithoutCancel(ctx)))
	}
	for _, s := range g.plan.Compose.Services {
		for _, p := range s.Ports {
			g.note(event.PortOpened, event.Notice, "a port of the guest leads to a container",
				slog.String("service", s.Name), slog.Any("port", p.HostPort), slog.String("protocol", p.Proto))
		}
	}
	return nil
}

func (g *Guest) stopContainers(ctx context.Context) error { return g.work.Stop(ctx) }

// writeProject lays the archive's files out below /data1/compose.
func writeProject(p *compose.Project) error {
	if err := os.MkdirAll(compose.Dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(compose.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range p.Files {
		name := filepath.FromSlash(f.Name)
		if f.Dir {
			if err := root.MkdirAll(name, 0o755); err != nil {
				return fmt.Errorf("folder: %w", err)
			}
			continue
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
		if err := root.WriteFile(name, f.Data, f.Mode.Perm()); err != nil {
			return fmt.Errorf("file: %w", err)
		}
	}
	return nil
}

// settle ends the boot: what only the boot needed is wiped. What libraries
// left of it on the heap is overwritten as it is collected (GODEBUG
// clobberfree, see pid1).
func (g *Guest) settle(context.Context) error {
	g.watchCertificates(context.Background())
	g.watchVolumes(context.Background())
	g.watchLog(context.Background())
	g.verified.Wipe()
	g.plan = nil
	debug.SetGCPercent(50) // from now on memory is dearer than time
	debug.FreeOSMemory()
	return nil
}
