package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"crownest.dev/crownest/test/testserver"
)

const (
	// template is what all sandboxes are made of; it has bash and Python.
	template = "python"

	streamBytes = 1600 * 64 << 10
	// streamProgram writes streamBytes of text in pieces of 64 KiB.
	streamProgram = `import os
b = (b"0123456789abcdef" * 4)[:63] + b"\n"
b *= 1024
for _ in range(1600):
    n = 0
    while n < len(b): n += os.write(1, b[n:])
`
	fileBytes = 100 << 20
)

// running is a server of our own and a client for it.
type running struct {
	*testserver.Server
	*testserver.Client
}

// serve starts a server with a data directory of its own.
func (b *bench) serve(ctx context.Context, name string, pool int, env ...string) (running, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return running{}, err
	}
	s, err := testserver.Start(ctx, testserver.Options{
		Data: dir, Template: template, Args: []string{"--pool", strconv.Itoa(pool)},
		// The log keeps all that is measured: a client slower than the program would
		// otherwise be overtaken by retention.
		Env: append([]string{"CROWNEST_LOG_LEVEL=warn", "CROWNEST_COMMAND_LOG_BYTES=268435456"}, env...),
	})
	if err != nil {
		return running{}, err
	}
	c, err := s.Client(ctx)
	if err != nil {
		return running{}, errors.Join(err, s.Destroy())
	}
	return running{s, c}, nil
}

// pooled waits until so many sandboxes run, in use and waiting.
func (r running) pooled(ctx context.Context, n int) error {
	tick := time.NewTicker(50 * time.Millisecond) // seen from outside, a pool can only be polled
	defer tick.Stop()
	for {
		dirs, err := filepath.Glob(filepath.Join(r.Data, "instances", "*", "meta.json"))
		if err != nil {
			return err
		}
		if len(dirs) >= n && r.settled() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d sandboxes, there are %d: %w", n, len(dirs), ctx.Err())
		}
	}
}

// settled reports whether no sandbox is being started: its record then names the
// process that runs it.
func (r running) settled() bool {
	files, err := filepath.Glob(filepath.Join(r.Data, "instances", "*", "meta.json"))
	if err != nil {
		return false
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(raw, []byte(`"controlSocket"`)) {
			return false
		}
	}
	return true
}

// cpu is the processor time that a piece of work took. Unlike the time on the
// clock it means something on a machine that others use too.
type cpu struct{ server, sandboxes time.Duration }

func (r running) cpu() (c cpu, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID()))
	if err != nil {
		return c, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	const hz = 100 // what the kernel tells programs, whatever it uses itself
	for _, i := range []int{11, 12} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return c, err
		}
		c.server += time.Duration(ticks) * time.Second / hz
	}
	c.sandboxes, err = r.SandboxCPU()
	return c, err
}

// costing measures fn and adds the processor time it took.
func (b *bench) costing(r running, what string, fn func() error) error {
	before, err := r.cpu()
	if err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	after, err := r.cpu()
	if err != nil {
		return err
	}
	n := float64(b.n(3, 1))
	b.add(what+", CPU of the server", crownest, "ms", []float64{ms(after.server-before.server) / n})
	b.add(what+", CPU of the sandboxes", crownest, "ms", []float64{ms(after.sandboxes-before.sandboxes) / n})
	return nil
}

func (r running) killAll(ctx context.Context, ids []string) error {
	return parallel(ctx, 8, len(ids), func(ctx context.Context, i int) error {
		_, err := r.KillSandbox(ctx, "", ids[i])
		return err
	})
}

// parallel runs fn for 0..n-1, so many at a time, and returns the errors joined.
func parallel(ctx context.Context, width, n int, fn func(context.Context, int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	slots := make(chan struct{}, width)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = fn(ctx, i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// rest lets a machine with little to do come to rest between two measurements.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// server measures one sandbox, and creates out of a pool that stays filled.
func (b *bench) server(ctx context.Context) (err error) {
	pool := b.n(24, 4)
	r, err := b.serve(ctx, "server", pool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Destroy()) }()
	if err := r.pooled(ctx, pool); err != nil {
		return err
	}
	if err := b.creates(ctx, r); err != nil {
		return fmt.Errorf("creates: %w", err)
	}
	if err := r.pooled(ctx, pool); err != nil {
		return err
	}
	sbx, err := r.CreateSandbox(ctx, "", template, nil)
	if err != nil {
		return err
	}
	// Nothing but this sandbox is at work from here on.
	if err := r.pooled(ctx, pool+1); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func(context.Context, running, string) error
	}{
		{"commands", b.commands}, {"first byte", b.firstByte}, {"stream", b.stream}, {"files", b.files},
	} {
		if err := step.run(ctx, r, sbx.ID); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// creates measures create and the first command behind it, a client that comes
// now and then; the pool is being refilled meanwhile.
func (b *bench) creates(ctx context.Context, r running) error {
	var creates, firsts []float64
	for range b.n(100, 5) {
		rest(ctx, 200*time.Millisecond)
		began := time.Now()
		sbx, err := r.CreateSandbox(ctx, "", template, nil)
		if err != nil {
			return err
		}
		creates = append(creates, ms(time.Since(began)))
		cmd, err := r.Run(ctx, "", sbx.ID, "echo hi", 0)
		if err != nil {
			return err
		}
		if cmd.Stdout != "hi\n" {
			return fmt.Errorf("echo ended with %+v", cmd)
		}
		firsts = append(firsts, ms(time.Since(began)))
		if _, err := r.KillSandbox(ctx, "", sbx.ID); err != nil {
			return err
		}
	}
	b.add(whatCreate, crownest, "ms", creates)
	b.add(whatFirst, crownest, "ms", firsts)
	return nil
}

func (b *bench) commands(ctx context.Context, r running, id string) error {
	for _, c := range []struct {
		what, command string
		pause         time.Duration
		full          int
	}{
		{whatTrue, "true", 150 * time.Millisecond, 100},
		{whatTrueB2B, "true", 0, 100},
		{whatEcho, "echo hi", 150 * time.Millisecond, 60},
		{whatPython, "python3 -c 'print(1)'", 150 * time.Millisecond, 30},
	} {
		var values []float64
		for range b.n(c.full, 3) {
			rest(ctx, c.pause)
			began := time.Now()
			cmd, err := r.Run(ctx, "", id, c.command, 0)
			if err != nil {
				return err
			}
			values = append(values, ms(time.Since(began)))
			if cmd.ExitCode == nil || *cmd.ExitCode != 0 {
				return fmt.Errorf("%s ended with %+v", c.command, cmd)
			}
		}
		b.add(c.what, crownest, "ms", values)
	}
	return nil
}

// firstByte measures from the moment at which a program wrote, by its own clock,
// to the moment at which the client has the event.
func (b *bench) firstByte(ctx context.Context, r running, id string) error {
	n := b.n(100, 5)
	program := fmt.Sprintf("for i in {1..%d}; do echo $EPOCHREALTIME; sleep 0.05; done", n)
	var values []float64
	err := r.RunStream(ctx, "", id, program, func(e testserver.Event) error {
		now := time.Now()
		if e.Type != "log" {
			return nil
		}
		micros, err := strconv.ParseInt(strings.Replace(strings.TrimSpace(e.Data), ".", "", 1), 10, 64)
		if err != nil {
			return fmt.Errorf("unexpected output %q: %w", e.Data, err)
		}
		values = append(values, ms(now.Sub(time.UnixMicro(micros))))
		return nil
	})
	if err == nil && len(values) != n {
		err = fmt.Errorf("%d of %d lines arrived", len(values), n)
	}
	b.add(whatFirstByte, crownest, "ms", values)
	return err
}

func (b *bench) stream(ctx context.Context, r running, id string) error {
	if _, err := r.WriteFile(ctx, "", id, "stream.py", streamProgram); err != nil {
		return err
	}
	var values []float64
	err := b.costing(r, whatStream, func() (err error) {
		values, err = b.streams(ctx, r, id)
		return err
	})
	b.add(whatStream, crownest, "MB/s", values)
	return err
}

func (b *bench) streams(ctx context.Context, r running, id string) (values []float64, err error) {
	for range b.n(3, 1) {
		got, status := 0, ""
		began := time.Now()
		err := r.RunStream(ctx, "", id, "python3 stream.py", func(e testserver.Event) error {
			switch e.Type {
			case "log":
				got += len(e.Data)
			case "terminal":
				status = e.Command.Status
			case "error":
				return fmt.Errorf("%s: %s", e.Code, e.Message)
			}
			return nil
		})
		if err != nil {
			return values, err
		}
		if got != streamBytes || status != "exited" {
			return values, fmt.Errorf("%d of %d bytes arrived, status %s", got, streamBytes, status)
		}
		values = append(values, mbps(streamBytes, time.Since(began)))
	}
	return values, nil
}

func (b *bench) files(ctx context.Context, r running, id string) error {
	data := make([]byte, fileBytes)
	random := rand.New(rand.NewPCG(1, 1))
	for i := 0; i < len(data); i += 8 {
		v := random.Uint64()
		for j := range 8 {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	sum := sha256.Sum256(data)
	var ups, downs []float64
	upload := func(path string) error {
		began := time.Now()
		var ticket struct {
			UploadURL string `json:"url"`
			Method    string
			Headers   map[string]string
		}
		err := r.Do(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/files/upload-url", "",
			map[string]any{"path": path, "sizeBytes": fileBytes, "sha256": hex.EncodeToString(sum[:])}, &ticket)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, ticket.UploadURL, bytes.NewReader(data))
		if err != nil {
			return err
		}
		for k, v := range ticket.Headers {
			req.Header.Set(k, v)
		}
		if err := transfer(r.HTTP, req, nil); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		ups = append(ups, mbps(fileBytes, time.Since(began)))
		return nil
	}
	download := func(path string) error {
		began := time.Now()
		var link struct{ URL string }
		if err := r.Do(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/files/download-url", "", map[string]any{"path": path}, &link); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, link.URL, nil)
		if err != nil {
			return err
		}
		h := sha256.New()
		if err := transfer(r.HTTP, req, h); err != nil {
			return fmt.Errorf("download: %w", err)
		}
		if !bytes.Equal(h.Sum(nil), sum[:]) {
			return errors.New("download: other bytes came back")
		}
		downs = append(downs, mbps(fileBytes, time.Since(began)))
		return nil
	}
	path := func(i int) string { return fmt.Sprintf("/workspace/file%d", i) }
	for _, step := range []struct {
		what string
		run  func(string) error
	}{{whatUpload, upload}, {whatDownload, download}} {
		err := b.costing(r, step.what, func() error {
			for i := range b.n(3, 1) {
				if err := step.run(path(i)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i := range b.n(3, 1) {
		if err := r.Do(ctx, http.MethodDelete, "/v1/sandboxes/"+id+"/files?path="+path(i), "", nil, nil); err != nil {
			return err
		}
	}
	b.add(whatUpload, crownest, "MB/s", ups)
	b.add(whatDownload, crownest, "MB/s", downs)
	return nil
}

func transfer(c *http.Client, req *http.Request, to io.Writer) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	if to == nil {
		to = io.Discard
	}
	_, err = io.Copy(to, resp.Body)
	return err
}

func burstSize(quick bool) int {
	if quick {
		return 5
	}
	return 100
}

// burst measures many creates at the same moment, out of a pool that has as many.
func (b *bench) burst(ctx context.Context) (err error) {
	n := burstSize(b.quick)
	r, err := b.serve(ctx, "burst", n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Destroy()) }()
	var values, each []float64
	for range b.n(3, 1) {
		if err := r.pooled(ctx, n); err != nil {
			return err
		}
		rest(ctx, time.Second)
		ids, took := make([]string, n), make([]float64, n)
		began := time.Now()
		err := parallel(ctx, n, n, func(ctx context.Context, i int) error {
			sbx, err := r.CreateSandbox(ctx, "", template, nil)
			if err != nil {
				return err
			}
			if sbx.Status != "ready" {
				return fmt.Errorf("sandbox is %s", sbx.Status)
			}
			ids[i], took[i] = sbx.ID, ms(time.Since(began))
			return nil
		})
		if err != nil {
			return err
		}
		values = append(values, ms(time.Since(began)))
		each = append(each, took...)
		if err := r.killAll(ctx, ids); err != nil {
			return err
		}
	}
	b.add(whatBurst, crownest, "ms", values)
	b.add("one create within the burst", crownest, "ms", each)
	return nil
}

// density measures what idle sandboxes cost, and whether many of them make a
// create slower.
func (b *bench) density(ctx context.Context) (err error) {
	pool, few, many := b.n(32, 4), b.n(10, 2), b.n(1000, 8)
	// What fits beside the rest of the machine.
	free := func() int64 { return meminfo("MemAvailable") }
	const each, reserve = 18 << 20, 2 << 30
	many = min(many, int((free()-reserve)/each)-pool)
	if many < few {
		return errors.New("too little memory is free")
	}
	r, err := b.serve(ctx, "density", pool, fmt.Sprintf("CROWNEST_MAX_SANDBOXES=%d", many+2*pool+64))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Destroy()) }()

	var ids []string
	grow := func(ctx context.Context, upto int) error {
		var mu sync.Mutex
		return parallel(ctx, 4, upto-len(ids), func(ctx context.Context, _ int) error {
			sbx, err := r.CreateSandbox(ctx, "", template, nil)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, sbx.ID)
			return nil
		})
	}
	measure := func(what string) error {
		if err := r.pooled(ctx, len(ids)+pool/2); err != nil {
			return err
		}
		rest(ctx, time.Second)
		var values []float64
		for range b.n(40, 3) {
			rest(ctx, 200*time.Millisecond)
			began := time.Now()
			sbx, err := r.CreateSandbox(ctx, "", template, nil)
			if err != nil {
				return err
			}
			values = append(values, ms(time.Since(began)))
			if _, err := r.KillSandbox(ctx, "", sbx.ID); err != nil {
				return err
			}
		}
		b.add(what, crownest, "ms", values)
		return nil
	}
	if err := grow(ctx, few); err != nil {
		return err
	}
	if err := measure(whatCreateFew); err != nil {
		return err
	}
	// The memory of the whole host, as it is what runs out: with the server, the
	// kernel's own tables and all that a cgroup does not count.
	before, have := free(), r.instances()
	if err := grow(ctx, min(100, many)); err != nil {
		return err
	}
	if err := r.pooled(ctx, len(ids)+pool/2); err != nil {
		return err
	}
	rest(ctx, time.Second)
	if more := r.instances() - have; more > 0 {
		b.add(whatIdle+", host", crownest, "MiB", []float64{float64(before-free()) / float64(more) / (1 << 20)})
	}
	if perCgroup, err := r.cgroupMemory(); err != nil {
		return err
	} else if len(perCgroup) > 0 {
		b.add(whatIdle, crownest, "MiB", perCgroup)
	}
	// Growing to the last ends early rather than the whole run late.
	gctx, cancel := context.WithTimeout(ctx, 150*time.Second)
	err = grow(gctx, many)
	cancel()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	b.add(whatLive, crownest, "", []float64{float64(len(ids))})
	return measure(whatCreateMany)
}

func (r running) instances() int {
	dirs, err := filepath.Glob(filepath.Join(r.Data, "instances", "*"))
	if err != nil {
		return 0
	}
	return len(dirs)
}

// meminfo reads a line of /proc/meminfo, in bytes.
func meminfo(name string) int64 {
	words := strings.Fields(field("/proc/meminfo", name, ":"))
	if len(words) == 0 {
		return 0
	}
	kib, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// cgroupMemory returns the MiB that each sandbox is charged, without page cache
// that could be dropped at once.
func (r running) cgroupMemory() ([]float64, error) {
	groups, err := r.Groups("memory")
	if err != nil {
		return nil, err
	}
	var out []float64
	for _, dir := range groups {
		raw, err := os.ReadFile(filepath.Join(dir, "memory.current")) // cgroup v2
		inactive := "inactive_file"
		if errors.Is(err, os.ErrNotExist) {
			raw, err = os.ReadFile(filepath.Join(dir, "memory.usage_in_bytes"))
			inactive = "total_inactive_file"
		}
		if err != nil {
			continue // it has ended
		}
		used, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil {
			return nil, err
		}
		cache, _ := strconv.ParseInt(field(filepath.Join(dir, "memory.stat"), inactive, " "), 10, 64)
		out = append(out, float64(used-cache)/(1<<20))
	}
	slices.Sort(out)
	return out, nil
}
