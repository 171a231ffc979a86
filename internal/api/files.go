package api

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"crownest.dev/crownest/internal/control"
	"crownest.dev/crownest/internal/sandbox"
)

// Encodings of file content in JSON.
const (
	encodingUTF8   = "utf8"
	encodingBase64 = "base64"
)

type wireFileAnswer struct {
	File wireFileStat `json:"file"`
}

type wireFileList struct {
	Data      []wireFileEntry `json:"data"`
	Truncated bool            `json:"truncated,omitempty" doc:"True: the directory has more than 10000 entries."`
}

type wireFileContent struct {
	Content   string `json:"content"`
	Encoding  string `json:"encoding" enum:"utf8,base64"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"sizeBytes"`
}

type wireWriteFileRequest struct {
	Path          string `json:"path" minLength:"1" maxLength:"4096"`
	Content       string `json:"content"`
	Encoding      string `json:"encoding,omitempty" enum:"utf8,base64" doc:"Omitted: utf8."`
	CreateParents bool   `json:"createParents,omitempty"`
	Overwrite     *bool  `json:"overwrite,omitempty" doc:"Omitted: true."`
}

func (in *wireWriteFileRequest) precheck(tree map[string]any) error {
	if v := tree["encoding"]; v != nil {
		name, _ := v.(string)
		return checkEncoding(name)
	}
	return nil
}

func (in *wireWriteFileRequest) validate() error {
	if err := noNUL("path", in.Path); err != nil {
		return err
	}
	_, err := in.bytes()
	return err
}

func (in *wireWriteFileRequest) bytes() ([]byte, error) {
	if in.Encoding != encodingBase64 {
		return []byte(in.Content), nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(in.Content)
	if err != nil || strings.ContainsAny(in.Content, "\r\n") { // the decoder would skip these
		return nil, sandbox.NewError(sandbox.CodeInvalidFileEncoding, "content is not standard, padded base64.")
	}
	return b, nil
}

func checkEncoding(name string) error {
	if name != encodingUTF8 && name != encodingBase64 {
		return sandbox.NewError(sandbox.CodeInvalidFileEncoding, "encoding must be utf8 or base64.")
	}
	return nil
}

type wireMakeDirectoryRequest struct {
	Path    string `json:"path" minLength:"1" maxLength:"4096"`
	Parents bool   `json:"parents,omitempty" doc:"True: make missing parents, and accept an existing directory."`
}

func (in *wireMakeDirectoryRequest) validate() error { return noNUL("path", in.Path) }

type wireMoveFileRequest struct {
	From      string `json:"from" minLength:"1" maxLength:"4096"`
	To        string `json:"to" minLength:"1" maxLength:"4096"`
	Overwrite bool   `json:"overwrite,omitempty"`
}

func (in *wireMoveFileRequest) validate() error { return noNUL("from", in.From, "to", in.To) }

type wireFileDownloadRequest struct {
	Path string `json:"path" minLength:"1" maxLength:"4096"`
}

func (in *wireFileDownloadRequest) validate() error { return noNUL("path", in.Path) }

type wireFileUploadRequest struct {
	Path          string `json:"path" minLength:"1" maxLength:"4096"`
	SizeBytes     *int64 `json:"sizeBytes,omitempty" minimum:"0" doc:"Declared size; checked."`
	SHA256        string `json:"sha256,omitempty" pattern:"^[0-9a-fA-F]{64}$" doc:"Declared digest; checked."`
	CreateParents bool   `json:"createParents,omitempty"`
	Overwrite     *bool  `json:"overwrite,omitempty" doc:"Omitted: true."`
}

func (in *wireFileUploadRequest) validate() error { return noNUL("path", in.Path) }

type wireFileDeleted struct {
	Deleted bool `json:"deleted" enum:"true"`
}

var qEncoding = func() *param {
	p := enumParam("encoding", "How content is given.", encodingUTF8, encodingUTF8, encodingBase64)
	p.check = checkEncoding
	return p
}()

func (s *Server) addFiles() {
	const files = "/v1/sandboxes/{sandboxId}/files"
	tag := "Files"
	// add fills in what all file routes share.
	op := func(id, method, path, summary, scope string, errs []int, params ...*param) operation {
		return operation{
			id: id, method: method, path: path, tag: tag, summary: summary, scope: scope,
			errors: append(errs, http.StatusGone, http.StatusServiceUnavailable),
			params: append([]*param{pSandbox}, params...),
		}
	}

	query(s, op("listFiles", http.MethodGet, files, "List one level of a directory", sandbox.ScopeFileRead, nil, qListPath),
		func(ctx context.Context, rq *request, _ *noBody) (wireFileList, error) {
			path := rq.query.Get("path")
			if path == "" {
				path = "/workspace"
			}
			found, err := s.control.ListFiles(ctx, rq.call, rq.path(pSandbox), path)
			if err != nil {
				return wireFileList{}, err
			}
			out := wireFileList{Data: make([]wireFileEntry, 0, len(found.Entries)), Truncated: found.Truncated}
			for _, f := range found.Entries {
				out.Data = append(out.Data, toFileEntry(f))
			}
			return out, nil
		})

	query(s, op("statFile", http.MethodGet, files+"/stat", "Describe a file or directory", sandbox.ScopeFileRead, nil, qPath),
		func(ctx context.Context, rq *request, _ *noBody) (wireFileAnswer, error) {
			return fileAnswer(s.control.StatFile(ctx, rq.call, rq.path(pSandbox), rq.query.Get("path")))
		})

	query(s, op("readFile", http.MethodGet, files+"/read", "Read a small file", sandbox.ScopeFileRead, []int{413}, qPath, qEncoding),
		func(ctx context.Context, rq *request, _ *noBody) (wireFileContent, error) {
			content, info, err := s.control.ReadFile(ctx, rq.call, rq.path(pSandbox), rq.query.Get("path"))
			if err != nil {
				return wireFileContent{}, err
			}
			out := wireFileContent{Encoding: encodingUTF8, Path: info.Path, SizeBytes: int64(len(content))}
			switch {
			case rq.query.Get("encoding") == encodingBase64:
				out.Encoding, out.Content = encodingBase64, base64.StdEncoding.EncodeToString(content)
			case !utf8.Valid(content):
				return out, sandbox.NewError(sandbox.CodeInvalidFileEncoding, "The file is not UTF-8; read it with encoding base64.")
			default:
				out.Content = string(content)
			}
			return out, nil
		})

	mutation(s, op("writeFile", http.MethodPut, files, "Write a small file", sandbox.ScopeFileWrite, []int{409, 413}),
		func(ctx context.Context, rq *request, in *wireWriteFileRequest) (wireFileAnswer, error) {
			content, err := in.bytes()
			if err != nil {
				return wireFileAnswer{}, err
			}
			return fileAnswer(s.control.WriteFile(ctx, rq.call, rq.path(pSandbox), control.WriteFileInput{
				Path: in.Path, Content: content, CreateParents: in.CreateParents, Overwrite: in.Overwrite,
			}))
		})

	mutation(s, op("deleteFile", http.MethodDelete, files, "Delete a file, link or empty directory", sandbox.ScopeFileWrite, []int{409}, qPath),
		func(ctx context.Context, rq *request, _ *noBody) (wireFileDeleted, error) {
			err := s.control.DeleteFile(ctx, rq.call, rq.path(pSandbox), rq.query.Get("path"))
			return wireFileDeleted{true}, err
		})

	mutation(s, op("makeDirectory", http.MethodPost, files+"/mkdir", "Make a directory", sandbox.ScopeFileWrite, []int{409}),
		func(ctx context.Context, rq *request, in *wireMakeDirectoryRequest) (wireFileAnswer, error) {
			return fileAnswer(s.control.MakeDirectory(ctx, rq.call, rq.path(pSandbox), in.Path, in.Parents))
		})

	mutation(s, op("moveFile", http.MethodPost, files+"/move", "Move or rename a file or directory", sandbox.ScopeFileWrite, []int{409}),
		func(ctx context.Context, rq *request, in *wireMoveFileRequest) (wireFileAnswer, error) {
			return fileAnswer(s.control.MoveFile(ctx, rq.call, rq.path(pSandbox), in.From, in.To, in.Overwrite))
		})

	s.addTransfers(files, op)
}

// addTransfers adds the staged routes for files of any size.
func (s *Server) addTransfers(files string, op func(id, method, path, summary, scope string, errs []int, params ...*param) operation) {
	downloadURL := op("createFileDownloadUrl", http.MethodPost, files+"/download-url", "Get a URL that downloads a file", sandbox.ScopeFileRead, []int{409})
	downloadURL.secret = true
	mutation(s, downloadURL, func(ctx context.Context, rq *request, in *wireFileDownloadRequest) (wireDownloadUrl, error) {
		id := rq.path(pSandbox)
		info, err := s.control.StatFile(ctx, rq.call, id, in.Path)
		if err != nil {
			return wireDownloadUrl{}, err
		}
		if info.Type == sandbox.FileTypeDirectory {
			return wireDownloadUrl{}, sandbox.NewError(sandbox.CodePathIsDirectory, "Only files can be downloaded; this is a directory.").With("path", info.Path)
		}
		return s.downloadURL(rq, "/v1/sandboxes/"+id+"/files/download", url.Values{"path": {in.Path}}, grant{id, "file:" + in.Path}), nil
	})

	download := op("downloadFile", http.MethodGet, files+"/download", "Download a file", sandbox.ScopeFileRead, []int{206, 416, 502}, qPath)
	download.signed, download.responses = true, rawAnswer
	download.grant = func(rq *request) grant { return grant{rq.path(pSandbox), "file:" + rq.query.Get("path")} }
	stream(s, download, func(ctx context.Context, rq *request) error {
		return s.download(ctx, rq, func(ctx context.Context) (control.Content, error) {
			c, err := s.control.FileContent(ctx, rq.call, rq.path(pSandbox), rq.query.Get("path"))
			c.ContentType = mediaBytes // whatever the sandbox says
			return c, err
		})
	})

	uploadURL := op("createFileUploadUrl", http.MethodPost, files+"/upload-url", "Get a URL that takes the bytes of a file", sandbox.ScopeFileWrite, []int{409, 413})
	uploadURL.status, uploadURL.secret, uploadURL.makes = http.StatusCreated, true, sandbox.PrefixUpload
	mutation(s, uploadURL, func(ctx context.Context, rq *request, in *wireFileUploadRequest) (wireUploadUrl, error) {
		id := rq.path(pSandbox)
		t, err := s.control.CreateUpload(ctx, rq.call, id, control.UploadInput{
			Path: in.Path, SizeBytes: in.SizeBytes, SHA256: in.SHA256, CreateParents: in.CreateParents, Overwrite: in.Overwrite,
		})
		if err != nil {
			return wireUploadUrl{}, err
		}
		path := "/v1/sandboxes/" + id + "/files/uploads/" + t.ID
		return wireUploadUrl{
			UploadID: t.ID, Method: http.MethodPut, Headers: map[string]string{"content-type": mediaBytes},
			URL:       s.signURL(rq, http.MethodPut, path, nil, grant{t.ID, "upload:" + id}, t.ExpiresAt),
			ExpiresAt: timestamp(t.ExpiresAt), MaxSizeBytes: t.MaxSize,
		}, nil
	})

	upload := op("uploadFile", http.MethodPut, files+"/uploads/{uploadId}", "Send the bytes of a file", sandbox.ScopeFileWrite, []int{409, 413}, pUpload)
	upload.signed, upload.raw, upload.status = true, true, http.StatusCreated
	upload.grant = func(rq *request) grant { return grant{rq.path(pUpload), "upload:" + rq.path(pSandbox)} }
	upload.rawRequest = true
	upload.answers(reflect.TypeFor[wireFileAnswer]())
	stream(s, upload, s.uploadFile)
}

func fileAnswer(f sandbox.FileInfo, err error) (wireFileAnswer, error) {
	if err != nil {
		return wireFileAnswer{}, err
	}
	return wireFileAnswer{toFileStat(f)}, nil
}

// uploadFile takes the bytes of a staged upload as they come.
func (s *Server) uploadFile(ctx context.Context, rq *request) error {
	body := &arrivingBody{r: rq.r.Body, rc: http.NewResponseController(rq.w), patience: s.timing.read}
	info, err := s.control.PutUpload(ctx, rq.call, rq.path(pSandbox), rq.path(pUpload), rq.r.ContentLength, body)
	_ = body.rc.SetReadDeadline(time.Time{})
	if err != nil {
		if body.broken != nil && sandbox.CodeInternal.Is(err) {
			return sandbox.NewError(sandbox.CodeInvalidRequest, "The request body ended early.").Because(errors.Join(body.broken, err))
		}
		if body.broken == nil {
			rq.drain(1 << 20)
		}
		return err
	}
	s.writeJSON(rq, rq.op.success(), encodeJSON(wireFileAnswer{toFileStat(info)}))
	return nil
}

// arrivingBody gives every read a deadline: a client may be slow, but not silent.
type arrivingBody struct {
	r        io.Reader
	rc       *http.ResponseController
	patience time.Duration
	broken   error
}

func (b *arrivingBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(b.patience))
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.broken = err
	}
	return n, err
}
