package api

import (
	"math"
	"sync"
	"time"

	"crownest.dev/crownest/internal/sandbox"
)

// maxBuckets bounds the memory of the limiter; full buckets are forgotten first,
// which changes nothing for their keys.
const maxBuckets = 10_000

// limiter holds one token bucket per credential.
type limiter struct {
	perSecond float64
	perMinute int
	burst     float64
	now       func() time.Time

	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(l RateLimit) *limiter {
	if l.PerMinute <= 0 {
		return nil
	}
	return &limiter{
		perSecond: float64(l.PerMinute) / 60, perMinute: l.PerMinute,
		burst: float64(max(l.Burst, 1)), now: time.Now, buckets: map[string]*bucket{},
	}
}

// take removes cost tokens. It returns whether they were there, how many are left
// and after how long the bucket is full again, or holds enough.
func (l *limiter) take(key string, cost float64) (ok bool, left int, wait time.Duration) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= maxBuckets {
			l.forget(now)
		}
		b = &bucket{tokens: l.burst, at: now}
		l.buckets[key] = b
	}
	b.tokens = min(l.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*l.perSecond)
	b.at = now
	if b.tokens < cost {
		return false, int(b.tokens), l.time(cost - b.tokens)
	}
	b.tokens -= cost
	return true, int(b.tokens), l.time(l.burst - b.tokens)
}

func (l *limiter) time(tokens float64) time.Duration {
	return time.Duration(tokens / l.perSecond * float64(time.Second))
}

// forget drops the buckets that are full by now, or all if none is.
func (l *limiter) forget(now time.Time) {
	for key, b := range l.buckets {
		if b.tokens+now.Sub(b.at).Seconds()*l.perSecond >= l.burst {
			delete(l.buckets, key)
		}
	}
	if len(l.buckets) >= maxBuckets {
		clear(l.buckets)
	}
}

// limit charges the request to its credential and sets the headers.
func (s *Server) limit(rq *request) error {
	l := s.limiter
	if l == nil {
		return nil
	}
	ok, left, wait := l.take(rq.principal().Actor("", "").ID, rq.op.cost)
	seconds := max(1, int(math.Ceil(wait.Seconds())))
	h := rq.w.Header()
	h.Set("RateLimit-Limit", itoa(l.perMinute))
	h.Set("RateLimit-Remaining", itoa(left))
	h.Set("RateLimit-Reset", itoa(seconds))
	if ok {
		return nil
	}
	h.Set("Retry-After", itoa(seconds))
	return sandbox.NewError(sandbox.CodeRateLimited, "Too many requests; at most %d a minute are allowed.", l.perMinute)
}
