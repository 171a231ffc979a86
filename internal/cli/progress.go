package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	// progressDelay keeps short transfers silent.
	progressDelay = 400 * time.Millisecond
	// progressEvery bounds how often the terminal is drawn to.
	progressEvery = 100 * time.Millisecond
)

// progressBar shows how far something long has come, on a terminal only. Its zero
// value shows nothing.
type progressBar struct {
	w     io.Writer // nil = silent
	label string
	width int // of the terminal
	now   func() time.Time

	mu      sync.Mutex
	started time.Time
	drawn   time.Time
	all     int64 // -1 = unknown
	done    int64
	shown   bool
}

func (a *app) progress(label string) *progressBar {
	p := &progressBar{label: printable(label), all: -1, now: time.Now}
	if a.errTTY {
		p.w, p.width = a.Err, terminalWidth(a.Err)
	}
	p.started = p.now()
	return p
}

// total says how much there is in all, -1 if unknown.
func (p *progressBar) total(n int64) {
	p.mu.Lock()
	p.all = n
	p.mu.Unlock()
}

// add counts n more bytes.
func (p *progressBar) add(n int) {
	if p.w == nil || n <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += int64(n)
	now := p.now()
	if now.Sub(p.started) < progressDelay || now.Sub(p.drawn) < progressEvery {
		return
	}
	p.drawn, p.shown = now, true
	_, _ = io.WriteString(p.w, "\r"+clip(p.line(now), p.width)+"\x1b[K")
}

// end removes the bar.
func (p *progressBar) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		_, _ = io.WriteString(p.w, "\r\x1b[K")
		p.shown = false
	}
}

func (p *progressBar) line(now time.Time) string {
	elapsed := now.Sub(p.started).Seconds()
	rate := float64(p.done) / elapsed
	if p.all <= 0 {
		return fmt.Sprintf("%s  %s  %s/s", p.label, byteSize(p.done), byteSize(int64(rate)))
	}
	const width = 24
	share := min(float64(p.done)/float64(p.all), 1)
	filled := int(share * width)
	left := time.Duration(float64(p.all-p.done) / rate * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("%s  [%s%s] %3.0f%%  %s of %s  %s/s  %s left", p.label,
		strings.Repeat("#", filled), strings.Repeat("-", width-filled), share*100,
		byteSize(p.done), byteSize(p.all), byteSize(int64(rate)), max(left, 0))
}

// terminalWidth is how many columns w has, if it is a terminal.
func terminalWidth(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	return 80
}

// clip shortens a line so that it does not wrap: a wrapped line could not be
// drawn over.
func clip(line string, width int) string {
	if runes := []rune(line); len(runes) >= width {
		return string(runes[:max(width-1, 0)])
	}
	return line
}

func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}

func (p *progressBar) reader(r io.Reader) io.Reader { return &countingReader{r, p} }
func (p *progressBar) writer(w io.Writer) io.Writer { return &countingWriter{w, p} }

type countingReader struct {
	r io.Reader
	p *progressBar
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.p.add(n)
	return n, err
}

type countingWriter struct {
	w io.Writer
	p *progressBar
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.p.add(n)
	return n, err
}
