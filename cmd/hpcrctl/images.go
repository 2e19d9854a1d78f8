package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"hpcr/disk/images/pack"
)

func init() { commands = append(commands, newImagesCmd) }

func newImagesCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "Put container images on a disk for guests without a registry", Args: cobra.NoArgs, RunE: needsSubcommand}
	cmd.AddCommand(newImagesPackCmd())
	return cmd
}

func newImagesPackCmd() *cobra.Command {
	var out, ca, auth string
	var platforms []string
	cmd := &cobra.Command{
		Use:   "pack --out DISK [--tls-ca F] [--auth-file F] [--platform OS/ARCH]... REF@DIGEST|LAYOUT|ARCHIVE...",
		Short: "Make a disk with container images, for boots without a registry",
		Long: `Make a disk that carries container images: attach it with the serial images, and a
guest takes from it what it holds before it asks any registry. The guest believes
the disk no more than a registry: the contract's digests and keys decide.

Each argument is one of
  NAME[:TAG]@DIGEST   an image in a registry, with the cosign signatures beside it;
                      NAME:TAG is whatever the registry says that it is now
  a folder            an OCI image layout; all of its images
  a file              a tar archive of an OCI image layout, or of docker save or
                      skopeo's docker-archive; not compressed

For each image a line NAME@DIGEST goes to standard output: what the contract is to
name. An image of an older docker archive has another digest than in a registry.

The disk is an OCI image layout in a tar archive, which tar lists. The same images
make the same bytes. The file is replaced as a whole, or not at all.

--auth-file is what podman login and docker login write (auth.json, config.json).
HTTPS_PROXY and NO_PROXY are heeded. Exit 0: made; 1: refused or not to be had; 2:
wrong usage, or a file that cannot be read.`,
		Example: `  hpcrctl images pack --out images.img registry.example.com/team/web@sha256:0123…
  hpcrctl images pack --platform linux/s390x --out images.img ./layout web.tar
  hpcrctl run --image image --user-data user-data --disk images=images.img`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usage("--out DISK is missing")
			}
			set, err := newImageSet(platforms)
			if err != nil {
				return err
			}
			registries, err := packRegistries(ca, auth)
			if err != nil {
				return err
			}
			files, err := collectImages(cmd.Context(), set, registries, args, cmd.ErrOrStderr())
			defer func() {
				for _, close := range files {
					close() // read only
				}
			}()
			if err != nil {
				return err
			}
			if err := writeDisk(cmd, set, out); err != nil {
				return err
			}
			for _, line := range imageLines(set.Images) {
				if _, err := fmt.Fprintln(messages(cmd, out), line); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file to make or replace (- = standard output)")
	f.StringVar(&ca, "tls-ca", "", "PEM file with further authorities of registries")
	f.StringVar(&auth, "auth-file", "", "file with registries' passwords")
	f.StringArrayVar(&platforms, "platform", []string{"linux/amd64", "linux/s390x"}, "of images for several platforms take this one; may be repeated")
	return cmd
}

// messages keeps lines out of a disk that goes to standard output.
func messages(cmd *cobra.Command, out string) io.Writer {
	if out == "-" {
		return cmd.ErrOrStderr()
	}
	return cmd.OutOrStdout()
}

func newImageSet(names []string) (*pack.Set, error) {
	var all []v1.Platform
	for _, n := range names {
		system, arch, ok := strings.Cut(n, "/")
		if !ok || system != "linux" || arch != "amd64" && arch != "s390x" {
			return nil, usage("--platform must be linux/amd64 or linux/s390x")
		}
		all = append(all, v1.Platform{OS: system, Architecture: arch})
	}
	return pack.NewSet(all), nil
}

func packRegistries(ca, auth string) (*pack.Registries, error) {
	var texts [2][]byte
	for i, name := range []string{ca, auth} {
		if name == "" {
			continue
		}
		var err error
		if texts[i], err = os.ReadFile(name); err != nil {
			return nil, usage("%w", err)
		}
	}
	r, err := pack.NewRegistries(texts[0], texts[1])
	if err != nil {
		return nil, usage("%w", err)
	}
	return r, nil
}

// collectImages finds out what the disk will hold. The files stay open until it
// is written.
func collectImages(ctx context.Context, set *pack.Set, from *pack.Registries, args []string, log io.Writer) (files []func() error, err error) {
	for _, arg := range args {
		if _, err := os.Stat(arg); err == nil {
			close, err := set.FromFile(ctx, arg)
			if err != nil {
				return files, fmt.Errorf("%s: %w", arg, err)
			}
			files = append(files, close)
			continue
		}
		if strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "/") {
			return files, usage("%s: there is no such file", arg)
		}
		named, err := reference.ParseNormalizedNamed(arg)
		if err != nil {
			return files, usage("%s is neither a file nor the name of an image", arg)
		}
		if _, pinned := named.(reference.Canonical); !pinned {
			fmt.Fprintf(log, "note: %s has no digest: it is what the registry says that it is now\n", arg)
		}
		if err := set.FromRegistry(ctx, from, arg); err != nil {
			return files, fmt.Errorf("%s: %w", arg, err)
		}
	}
	return files, nil
}

// writeDisk writes to a file beside the one that it becomes.
func writeDisk(cmd *cobra.Command, set *pack.Set, out string) error {
	show := &packProgress{w: cmd.ErrOrStderr(), all: set.Size(), last: time.Now()}
	if out == "-" {
		return set.Write(cmd.Context(), cmd.OutOrStdout(), show.heard)
	}
	if fi, err := os.Lstat(out); err == nil && !fi.Mode().IsRegular() {
		return usage("%s is no file: write the disk to a file, and copy it", out)
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return usage("%w", err)
	}
	err = set.Write(cmd.Context(), f, show.heard)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), out)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	fmt.Fprintf(show.w, "made %s, %d image(s), %.1f MB\n", out, len(imageLines(set.Images)), float64(show.all)/1e6)
	return nil
}

// packProgress says every second how far the disk is.
type packProgress struct {
	w    io.Writer
	all  int64 // bytes
	last time.Time
}

func (p *packProgress) heard(done int64) {
	if time.Since(p.last) >= time.Second {
		p.last = time.Now()
		fmt.Fprintf(p.w, "%.1f of %.1f MB\n", float64(done)/1e6, float64(p.all)/1e6)
	}
}

// imageLines are what a contract may name, each once: NAME@DIGEST, or a digest
// whose image may have any name.
func imageLines(all []pack.Image) (lines []string) {
	seen := map[string]bool{}
	for _, i := range all {
		line := i.Pinned()
		if line == "" || seen[line] {
			continue
		}
		seen[line] = true
		lines = append(lines, line)
	}
	return lines
}
