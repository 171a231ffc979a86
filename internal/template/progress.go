package template

import "sync"

// Phases that every build may go through; the others are named by the builder.
const (
	PhaseWaiting = "waiting for another builder"
	PhaseDone    = "done"
)

// Progress says how far a build is.
type Progress struct {
	Slug  string
	Phase string
	// Percent of the phase, -1 while unknown.
	Percent float64
	// Line is the latest line of output, if that is the news.
	Line string
}

// progress collects what the parts of a build tell, from several goroutines, and
// reports it one piece at a time.
type progress struct {
	log tail

	mu     sync.Mutex
	last   Progress
	report func(Progress)
}

func newProgress(slug string, report func(Progress)) *progress {
	if report == nil {
		report = func(Progress) {}
	}
	return &progress{last: Progress{Slug: slug, Percent: -1}, report: report}
}

func (p *progress) phase(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last.Phase, p.last.Percent = name, -1
	if name == PhaseDone {
		p.last.Percent = 100
	}
	p.report(p.last)
}

// percent only ever goes up within a phase.
func (p *progress) percent(percent float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if percent <= p.last.Percent {
		return
	}
	p.last.Percent = percent
	p.report(p.last)
}

func (p *progress) line(line string) {
	p.log.add(line)
	p.mu.Lock()
	defer p.mu.Unlock()
	news := p.last
	news.Line = line
	p.report(news)
}
