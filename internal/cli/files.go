package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	crownest "crownest.dev/go"
)

// directLimit is the most that a direct write takes; larger uploads are staged.
const directLimit = 256 << 10

func (a *app) filesCommand() *cobra.Command {
	return group("files", "Read, write and move files in a sandbox",
		a.filesRead(), a.filesWrite(), a.filesUpload(), a.filesList(), a.filesStat(),
		a.filesMkdir(), a.filesMove(), a.filesDelete())
}

func (a *app) filesRead() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "read SANDBOX PATH", Short: "Print a file, or save it with --output", Args: args(2, 2),
		Long: `Prints the content of a file as it is. With --json the content stands in the
envelope: as text, or in base64 where it is not text (see "encoding").`,
		Example: `  crownest files read sbx_... notes.txt
  crownest files read sbx_... /workspace/data.bin --output data.bin`,
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			ctx, sb, file := cmd.Context(), words[0], words[1]
			switch {
			case output != "":
				return a.fetchFile(ctx, client, sb, file, output)
			case a.json:
				content, err := client.Files.ReadContent(ctx, sb, file, "utf8")
				if crownest.ErrorCode(err) == "invalid_file_encoding" {
					content, err = client.Files.ReadContent(ctx, sb, file, "base64")
				}
				if err != nil {
					return err
				}
				return a.record(content)
			}
			b, err := client.Files.ReadBytes(ctx, sb, file)
			if crownest.ErrorCode(err) == "file_too_large" {
				_, err = client.Files.Download(ctx, sb, file, a.Out, nil)
				return err
			}
			if err != nil {
				return err
			}
			return a.write(string(b))
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "save to this `FILE` or directory, of any size")
	return c
}

func (a *app) fetchFile(ctx context.Context, client *crownest.Client, sandboxID, file, output string) error {
	output = inDirectory(output, path.Base(file))
	bar := a.progress("downloading " + path.Base(file))
	n, err := saveFile(output, func(w io.Writer) (int64, error) {
		return client.Files.Download(ctx, sandboxID, file, bar.writer(w), bar.total)
	})
	bar.end()
	if err != nil {
		return err
	}
	return a.value(struct {
		Path      string `json:"path"`
		SandboxID string `json:"sandboxId"`
		Source    string `json:"source"`
		SizeBytes int64  `json:"sizeBytes"`
	}{output, sandboxID, file, n})
}

func (a *app) filesWrite() *cobra.Command {
	var o crownest.WriteOptions
	var overwrite bool
	c := &cobra.Command{
		Use: "write SANDBOX PATH [CONTENT]", Short: "Write a small file", Args: args(2, 3),
		Long: `Writes CONTENT, or what comes on standard input where CONTENT is left out, to a
file. For more than 256 KiB use "crownest files upload".`,
		Example: `  crownest files write sbx_... main.py 'print(42)'
  crownest files write sbx_... src/main.py --create-parents < main.py`,
		RunE: func(cmd *cobra.Command, words []string) error {
			o.NoOverwrite = !overwrite
			client, err := a.client()
			if err != nil {
				return err
			}
			var f *crownest.File
			if len(words) == 3 {
				// Bytes, not text: an argument need not be UTF-8.
				f, err = client.Files.WriteBytes(cmd.Context(), words[0], words[1], []byte(words[2]), &o)
			} else {
				var content []byte
				if content, err = io.ReadAll(io.LimitReader(a.In, directLimit+1)); err != nil {
					return fmt.Errorf("reading standard input: %w", err)
				}
				if len(content) > directLimit {
					return runtimeErrorf("standard input is more than %d bytes", directLimit).
						hint("use `crownest files upload %s - %s`", words[0], words[1])
				}
				f, err = client.Files.WriteBytes(cmd.Context(), words[0], words[1], content, &o)
			}
			if err != nil {
				return err
			}
			return a.record(f)
		},
	}
	c.Flags().BoolVar(&o.CreateParents, "create-parents", false, "make missing parent directories")
	c.Flags().BoolVar(&overwrite, "overwrite", true, "replace a file that is there; --overwrite=false fails instead")
	idempotencyFlag(c, &o.IdempotencyKey)
	return c
}

func (a *app) filesUpload() *cobra.Command {
	var to string
	var createParents, overwrite bool
	c := &cobra.Command{
		Use: "upload SANDBOX LOCAL [REMOTE]", Short: "Upload a file of any size", Args: args(2, 3),
		Long: `Uploads a local file (- = standard input) to REMOTE, by default its base name
below /workspace. The file appears only when all of it has arrived and its
checksum is right.`,
		Example: `  crownest files upload sbx_... data.csv
  crownest files upload sbx_... build.tar.gz dist/build.tar.gz --create-parents
  tar cz src | crownest files upload sbx_... - src.tar.gz`,
		RunE: func(cmd *cobra.Command, words []string) error {
			local, remote := words[1], to
			if len(words) == 3 {
				if cmd.Flags().Changed("to") {
					return usageErrorf("give the remote path once: as an argument or with --to")
				}
				remote = words[2]
			}
			if remote == "" {
				if local == "-" {
					return usageErrorf("standard input has no name").hint("give the remote path: %s", cmd.UseLine())
				}
				remote = filepath.Base(local)
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			o := crownest.UploadOptions{CreateParents: createParents, NoOverwrite: !overwrite}
			f, err := a.upload(cmd.Context(), client, words[0], local, remote, o)
			if err != nil {
				return err
			}
			return a.record(f)
		},
	}
	c.Flags().StringVar(&to, "to", "", "remote `PATH`")
	c.Flags().BoolVar(&createParents, "create-parents", false, "make missing parent directories")
	c.Flags().BoolVar(&overwrite, "overwrite", true, "replace a file that is there; --overwrite=false fails instead")
	return c
}

func (a *app) upload(ctx context.Context, client *crownest.Client, sandboxID, local, remote string, o crownest.UploadOptions) (*crownest.File, error) {
	src := a.In
	if local != "-" {
		f, err := os.Open(local)
		if err != nil {
			return nil, runtimeErrorf("opening the file to upload: %w", err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("looking at the file to upload: %w", err)
		}
		if info.IsDir() {
			return nil, runtimeErrorf("%s is a directory", local).
				hint("pack it first: tar cz %s | crownest files upload %s - archive.tar.gz", quoteWord(local), sandboxID)
		}
		if info.Mode().IsRegular() && info.Size() > directLimit {
			return a.uploadLarge(ctx, client, sandboxID, f, info.Size(), remote, o)
		}
		src = f
	}
	// What fits is written directly. The source may be a pipe, so its size shows
	// only by reading.
	head, err := io.ReadAll(io.LimitReader(src, directLimit+1))
	if err != nil {
		return nil, fmt.Errorf("reading what to upload: %w", err)
	}
	if len(head) <= directLimit {
		return client.Files.WriteBytes(ctx, sandboxID, remote, head, &crownest.WriteOptions{
			CreateParents: o.CreateParents, NoOverwrite: o.NoOverwrite,
		})
	}
	bar := a.progress("uploading " + path.Base(remote))
	defer bar.end()
	bar.total(-1)
	return client.Files.Upload(ctx, sandboxID, remote, bar.reader(io.MultiReader(bytes.NewReader(head), src)), &o)
}

// uploadLarge reads the file twice: once for its checksum, once to send it.
func (a *app) uploadLarge(ctx context.Context, client *crownest.Client, sandboxID string, f *os.File, size int64, remote string, o crownest.UploadOptions) (*crownest.File, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, io.LimitReader(contextReader{ctx, f}, size)); err != nil {
		return nil, fmt.Errorf("reading the file to upload: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the file to upload: %w", err)
	}
	o.SizeBytes, o.SHA256 = &size, hex.EncodeToString(hash.Sum(nil))
	bar := a.progress("uploading " + path.Base(remote))
	defer bar.end()
	bar.total(size)
	return client.Files.Upload(ctx, sandboxID, remote, bar.reader(io.LimitReader(f, size)), &o)
}

// contextReader ends a long read when the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

func (a *app) filesList() *cobra.Command {
	return &cobra.Command{
		Use: "list SANDBOX [PATH]", Short: "List a directory", Args: args(1, 2),
		Example: "  crownest files list sbx_...\n  crownest files list sbx_... src --json",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			dir := ""
			if len(words) == 2 {
				dir = words[1]
			}
			entries, err := client.Files.List(cmd.Context(), words[0], dir)
			if err != nil {
				return err
			}
			return a.list(rawList(entries), "path", "type", "size=sizeBytes", "modifiedAt")
		},
	}
}

func (a *app) filesStat() *cobra.Command {
	return &cobra.Command{
		Use: "stat SANDBOX PATH", Short: "Describe a file or directory", Args: args(2, 2),
		Example: "  crownest files stat sbx_... main.py",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			f, err := client.Files.Stat(cmd.Context(), words[0], words[1])
			if err != nil {
				return err
			}
			return a.record(f)
		},
	}
}

func (a *app) filesMkdir() *cobra.Command {
	var o crownest.MkdirOptions
	c := &cobra.Command{
		Use: "mkdir SANDBOX PATH", Short: "Make a directory", Args: args(2, 2),
		Example: "  crownest files mkdir sbx_... src/app --parents",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			f, err := client.Files.Mkdir(cmd.Context(), words[0], words[1], &o)
			if err != nil {
				return err
			}
			return a.record(f)
		},
	}
	c.Flags().BoolVar(&o.Parents, "parents", false, "make missing parents; an existing directory is fine")
	idempotencyFlag(c, &o.IdempotencyKey)
	return c
}

func (a *app) filesMove() *cobra.Command {
	var o crownest.MoveOptions
	c := &cobra.Command{
		Use: "move SANDBOX FROM TO", Short: "Rename a file or directory", Args: args(3, 3),
		Example: "  crownest files move sbx_... draft.md final.md --overwrite",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			f, err := client.Files.Move(cmd.Context(), words[0], words[1], words[2], &o)
			if err != nil {
				return err
			}
			return a.record(f)
		},
	}
	c.Flags().BoolVar(&o.Overwrite, "overwrite", false, "replace what is there")
	idempotencyFlag(c, &o.IdempotencyKey)
	return c
}

func (a *app) filesDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete SANDBOX PATH", Short: "Delete a file or an empty directory", Args: args(2, 2),
		Example: "  crownest files delete sbx_... old.txt",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := client.Files.Delete(cmd.Context(), words[0], words[1]); err != nil {
				return err
			}
			return a.value(struct {
				Status  string `json:"status"`
				Path    string `json:"path"`
				Deleted bool   `json:"deleted"`
			}{"deleted", words[1], true})
		},
	}
}

func (a *app) artifactsCommand() *cobra.Command {
	return group("artifacts", "Keep files beyond the life of their sandbox",
		a.artifactsCreate(), a.artifactsList(), a.artifactsGet(), a.artifactsDownload(), a.artifactsDelete())
}

func (a *app) artifactsCreate() *cobra.Command {
	var p crownest.CreateArtifactParams
	c := &cobra.Command{
		Use: "create SANDBOX PATH", Short: "Keep a file of a live sandbox", Args: args(2, 2),
		Example: "  crownest artifacts create sbx_... out/report.html --name report.html",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			p.Path = words[1]
			artifact, err := client.Artifacts.Create(cmd.Context(), words[0], p)
			if err != nil {
				return err
			}
			return a.record(artifact)
		},
	}
	c.Flags().StringVar(&p.Name, "name", "", "`NAME` of the artifact (default: the last element of PATH)")
	idempotencyFlag(c, &p.IdempotencyKey)
	return c
}

func (a *app) artifactsList() *cobra.Command {
	return &cobra.Command{
		Use: "list SANDBOX", Short: "List the artifacts of a sandbox, also after its end", Args: args(1, 1),
		Example: "  crownest artifacts list sbx_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			list, err := client.Artifacts.List(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.list(rawList(list), "id", "name", "size=sizeBytes", "createdAt")
		},
	}
}

func (a *app) artifactsGet() *cobra.Command {
	return &cobra.Command{
		Use: "get ARTIFACT", Short: "Show an artifact's record", Args: args(1, 1),
		Example: "  crownest artifacts get art_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			artifact, err := client.Artifacts.Get(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.record(artifact)
		},
	}
}

func (a *app) artifactsDownload() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "download ARTIFACT", Short: "Print an artifact, or save it with --output", Args: args(1, 1),
		Long: `Writes the bytes of an artifact to standard output, or to a file or directory with
--output. A saved file appears only when it is complete and its checksum is right.`,
		Example: `  crownest artifacts download art_... --output report.html
  crownest artifacts download art_... | tar tz`,
		RunE: func(cmd *cobra.Command, words []string) error {
			if a.json && output == "" {
				return usageErrorf("%s --json needs --output: the bytes and the envelope cannot share standard output", cmd.CommandPath())
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			if output == "" {
				_, err := client.Artifacts.DownloadTo(cmd.Context(), words[0], a.Out, nil)
				return err
			}
			return a.fetchArtifact(cmd.Context(), client, words[0], output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "`FILE` or directory to save to")
	return c
}

func (a *app) fetchArtifact(ctx context.Context, client *crownest.Client, id, output string) error {
	artifact, err := client.Artifacts.Get(ctx, id)
	if err != nil {
		return err
	}
	output = inDirectory(output, path.Base("/"+artifact.Name))
	bar := a.progress("downloading " + artifact.Name)
	n, err := saveFile(output, func(w io.Writer) (int64, error) {
		hash := sha256.New()
		n, err := client.Artifacts.DownloadTo(ctx, id, bar.writer(io.MultiWriter(w, hash)), bar.total)
		if got := hex.EncodeToString(hash.Sum(nil)); err == nil && artifact.SHA256 != "" && !strings.EqualFold(got, artifact.SHA256) {
			err = runtimeErrorf("the artifact arrived damaged: its checksum is %s instead of %s", got, artifact.SHA256).hint("try again")
		}
		return n, err
	})
	bar.end()
	if err != nil {
		return err
	}
	return a.value(struct {
		ID        string `json:"id"`
		Path      string `json:"path"`
		Name      string `json:"name"`
		SizeBytes int64  `json:"sizeBytes"`
		SHA256    string `json:"sha256,omitempty"`
	}{artifact.ID, output, artifact.Name, n, artifact.SHA256})
}

func (a *app) artifactsDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ARTIFACT", Short: "Delete an artifact", Args: args(1, 1),
		Example: "  crownest artifacts delete art_...",
		RunE: func(cmd *cobra.Command, words []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			artifact, err := client.Artifacts.Delete(cmd.Context(), words[0])
			if err != nil {
				return err
			}
			return a.recordWith(artifact, stringMember("status", "deleted"))
		},
	}
}

// inDirectory is where a file called name goes if output is a directory.
func inDirectory(output, name string) string {
	if info, err := os.Stat(output); err == nil && info.IsDir() {
		return filepath.Join(output, name)
	}
	return output
}

// saveFile lets fetch write a file that appears under its name only when fetch
// succeeded. What is not a regular file, such as a pipe, is written to directly.
func saveFile(name string, fetch func(io.Writer) (int64, error)) (n int64, err error) {
	if info, statErr := os.Stat(name); statErr == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return 0, runtimeErrorf("opening the output: %w", err)
		}
		n, err := fetch(f)
		return n, errors.Join(err, f.Close())
	}
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".crownest-part")
	_ = os.Remove(tmp) // what an earlier run left when it was killed
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 0, runtimeErrorf("making the output file: %w", err)
	}
	n, err = fetch(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return n, err
}
