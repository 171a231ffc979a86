package audit_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
)

// TestHash spells the canonical form out, so that a change of it is seen: chains
// that exist would not hold any more.
func TestHash(t *testing.T) {
	e := sandbox.AuditEvent{
		ID: "aud_1", OrgID: "org_1", ProjectID: "prj_1",
		Actor:  sandbox.AuditActor{Kind: "api_key", ID: "key_1", IP: "127.0.0.1", UserAgent: "<curl & co>"},
		Action: "sandbox.create", ResourceType: "sandbox", ResourceID: "sbx_1", Outcome: "success", RequestID: "req_1",
		CreatedAt: time.Date(2026, 1, 2, 4, 4, 5, 6789e3, time.FixedZone("", 3600)),
		Details:   map[string]any{"z": 1.0, "a": []string{"é"}},
		Hash:      "not part of it",
	}
	if err := audit.Link(&e, audit.FirstPrevHash); err != nil {
		t.Fatal(err)
	}
	const canonical = `{"action":"sandbox.create","actor":{"id":"key_1","ip":"127.0.0.1","kind":"api_key","userAgent":"<curl & co>"},` +
		`"createdAt":"2026-01-02T03:04:05.006Z","details":{"a":["é"],"z":1},"id":"aud_1","orgId":"org_1","outcome":"success",` +
		`"prevHash":"0000000000000000000000000000000000000000000000000000000000000000","projectId":"prj_1","requestId":"req_1",` +
		`"resource":{"id":"sbx_1","type":"sandbox"}}`
	sum := sha256.Sum256([]byte(canonical))
	if want := hex.EncodeToString(sum[:]); e.Hash != want {
		t.Errorf("got hash %s, want %s", e.Hash, want)
	}

	// What is absent on the wire is absent from the hash.
	bare := sandbox.AuditEvent{ID: "aud_2", OrgID: "org_1", Actor: sandbox.AuditActor{Kind: "system", ID: "server"}, CreatedAt: e.CreatedAt}
	if err := audit.Link(&bare, e.Hash); err != nil {
		t.Fatal(err)
	}
	sum = sha256.Sum256([]byte(`{"action":"","actor":{"id":"server","kind":"system"},"createdAt":"2026-01-02T03:04:05.006Z",` +
		`"details":{},"id":"aud_2","orgId":"org_1","outcome":"","prevHash":"` + e.Hash + `","resource":{"id":"","type":""}}`))
	if want := hex.EncodeToString(sum[:]); bare.Hash != want {
		t.Errorf("got hash %s, want %s", bare.Hash, want)
	}
}

// chain is a walker over events, which may end in an error.
type chain struct {
	events []sandbox.AuditEvent
	err    error
}

func (c chain) WalkAudit(_ context.Context, _ string, fn func(sandbox.AuditEvent) error) error {
	for _, e := range c.events {
		if err := fn(e); err != nil {
			return err
		}
	}
	return c.err
}

func TestVerify(t *testing.T) {
	whole := func() []sandbox.AuditEvent {
		var events []sandbox.AuditEvent
		prev := audit.FirstPrevHash
		for _, id := range []string{"aud_1", "aud_2", "aud_3"} {
			e := sandbox.AuditEvent{ID: id, OrgID: "org_1", Details: map[string]any{"id": id}}
			if err := audit.Link(&e, prev); err != nil {
				t.Fatal(err)
			}
			events, prev = append(events, e), e.Hash
		}
		return events
	}
	for name, c := range map[string]struct {
		change func(e []sandbox.AuditEvent) chain
		want   audit.Result
	}{
		"whole":     {func(e []sandbox.AuditEvent) chain { return chain{events: e} }, audit.Result{OK: true, Checked: 3, FirstID: "aud_1", LastID: "aud_3"}},
		"empty":     {func([]sandbox.AuditEvent) chain { return chain{} }, audit.Result{OK: true}},
		"truncated": {func(e []sandbox.AuditEvent) chain { return chain{e[:2], store.ErrAuditTruncated} }, audit.Result{Checked: 2, FirstID: "aud_1", LastID: "aud_2", BrokenAtID: "aud_2"}},
		"beheaded":  {func(e []sandbox.AuditEvent) chain { return chain{events: e[1:]} }, audit.Result{BrokenAtID: "aud_2"}},
		"exchanged": {func(e []sandbox.AuditEvent) chain { e[1], e[2] = e[2], e[1]; return chain{events: e} }, audit.Result{Checked: 1, FirstID: "aud_1", LastID: "aud_1", BrokenAtID: "aud_3"}},
		"details":   {func(e []sandbox.AuditEvent) chain { e[1].Details["id"] = "x"; return chain{events: e} }, audit.Result{Checked: 1, FirstID: "aud_1", LastID: "aud_1", BrokenAtID: "aud_2"}},
		"rehashed": {func(e []sandbox.AuditEvent) chain {
			e[0].Action = "x"
			if err := audit.Link(&e[0], audit.FirstPrevHash); err != nil {
				t.Fatal(err)
			}
			return chain{events: e}
		}, audit.Result{Checked: 1, FirstID: "aud_1", LastID: "aud_1", BrokenAtID: "aud_2"}},
	} {
		got, err := audit.Verify(t.Context(), c.change(whole()), "org_1")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	broken := errors.New("disk")
	if _, err := audit.Verify(t.Context(), chain{whole(), broken}, "org_1"); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
