package auth_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"crownest.dev/crownest/internal/audit"
	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
	"crownest.dev/crownest/internal/store"
	"crownest.dev/crownest/internal/store/sqldb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// open opens the database at path, as one process would.
func open(t testing.TB, path string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(context.Background(), path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func fresh(t testing.TB) *sqldb.DB { return open(t, filepath.Join(t.TempDir(), "store.db")) }

// setUp returns a store with its organisation and a key.
func setUp(t testing.TB) (db *sqldb.DB, org store.Org, secret string, key sandbox.Key) {
	t.Helper()
	db = fresh(t)
	org, _, err := auth.EnsureOrg(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	secret, key, err = auth.CreateKey(t.Context(), db, auth.KeyParams{
		OrgID: org.ID, Name: "test", Scopes: []string{sandbox.ScopeSandboxRead}, CreatedByUserID: org.OperatorUserID,
	})
	if err != nil {
		t.Fatal(err)
	}
	return db, org, secret, key
}

func authenticator(t testing.TB, s store.Store) *auth.Authenticator {
	t.Helper()
	a := auth.NewAuthenticator(s, quiet)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func revoke(t testing.TB, s store.Store, id string) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.RevokeKey(t.Context(), id, time.Now()) }); err != nil {
		t.Fatal(err)
	}
}

func TestGenerateKey(t *testing.T) {
	seen := map[string]bool{}
	chars := map[rune]int{}
	const keys = 2000
	for range keys {
		k := auth.GenerateKey()
		rest, ok := strings.CutPrefix(k, "cn_live_")
		if !ok || len(rest) != 43 || seen[k] {
			t.Fatalf("key %q", k)
		}
		seen[k] = true
		for _, c := range rest {
			chars[c]++
		}
	}
	if len(chars) != 62 {
		t.Errorf("%d different characters", len(chars))
	}
	for c, n := range chars { // 1387 each on average, deviation 37
		if n < 1100 || n > 1700 {
			t.Errorf("%c comes %d times", c, n)
		}
	}
	k := auth.GenerateKey()
	if auth.DisplayPrefix(k) != k[:12] || auth.Last4(k) != k[len(k)-4:] || len(auth.Hash(k)) != 64 {
		t.Errorf("parts of %q are wrong", k)
	}
}

func TestAuthenticate(t *testing.T) {
	db, org, secret, key := setUp(t)
	a := authenticator(t, db)
	want := auth.Principal{
		OrgID: org.ID, KeyID: key.ID, UserID: org.OperatorUserID, Kind: auth.KindAPIKey,
		ProjectIDs: []string{}, Scopes: []string{sandbox.ScopeSandboxRead},
	}
	for range 2 { // from the store and from the cache
		got, err := a.Authenticate(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	for name, c := range map[string]struct {
		secret string
		code   sandbox.Code
	}{
		"missing":   {"", sandbox.CodeUnauthorized},
		"unknown":   {auth.GenerateKey(), sandbox.CodeInvalidAPIKey},
		"cut":       {secret[:len(secret)-1], sandbox.CodeInvalidAPIKey},
		"short":     {"cn_live_abc", sandbox.CodeInvalidAPIKey},
		"long":      {"cn_live_" + strings.Repeat("a", 10000), sandbox.CodeInvalidAPIKey},
		"other":     {"cn_test_" + secret[8:], sandbox.CodeInvalidAPIKey},
		"not ASCII": {secret[:50] + "é", sandbox.CodeInvalidAPIKey},
		"its hash":  {key.Hash, sandbox.CodeInvalidAPIKey},
	} {
		if _, err := a.Authenticate(t.Context(), c.secret); !c.code.Is(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, ok, err := a.Live(t.Context(), key.ID); !ok || err != nil {
		t.Errorf("live: %v, %v", ok, err)
	}
	if _, ok, err := a.Live(t.Context(), "key_none"); ok || err != nil {
		t.Errorf("an unknown key: %v, %v", ok, err)
	}
}

func TestRevocationHere(t *testing.T) {
	db, _, secret, key := setUp(t)
	a := authenticator(t, db)
	if _, err := a.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	revoke(t, db, key.ID)
	a.Forget(key.ID)
	if _, err := a.Authenticate(t.Context(), secret); !sandbox.CodeInvalidAPIKey.Is(err) {
		t.Errorf("got %v", err)
	}
	if _, ok, err := a.Live(t.Context(), key.ID); ok || err != nil {
		t.Errorf("live: %v, %v", ok, err)
	}
}

func TestRevocationElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	server, admin := open(t, path), open(t, path)
	org, _, err := auth.EnsureOrg(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	a := authenticator(t, server)
	secret, key, err := auth.CreateKey(t.Context(), admin, auth.KeyParams{
		OrgID: org.ID, Name: "made by the admin tool", Scopes: sandbox.DefaultScopes, CreatedByUserID: org.OperatorUserID,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	revoke(t, admin, key.ID)
	revoked := time.Now()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for range poll.C {
		asked := time.Now()
		_, err := a.Authenticate(t.Context(), secret)
		if sandbox.CodeInvalidAPIKey.Is(err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if asked.Sub(revoked) > time.Second {
			t.Fatal("still live after a second")
		}
	}
}

// TestForgetDuringLookup revokes while many ask: nobody who asks after Forget
// returned is let in, whatever crossed it.
func TestForgetDuringLookup(t *testing.T) {
	db, org, _, _ := setUp(t)
	a := authenticator(t, db)
	for range 30 {
		secret, key, err := auth.CreateKey(t.Context(), db, auth.KeyParams{
			OrgID: org.ID, Name: "k", Scopes: sandbox.DefaultScopes, CreatedByUserID: org.OperatorUserID,
		})
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for range 8 {
			work.Go(func() {
				_, err := a.Authenticate(t.Context(), secret)
				if err != nil && !sandbox.CodeInvalidAPIKey.Is(err) {
					t.Error(err)
				}
			})
		}
		revoke(t, db, key.ID)
		a.Forget(key.ID)
		if _, err := a.Authenticate(t.Context(), secret); !sandbox.CodeInvalidAPIKey.Is(err) {
			t.Fatalf("got %v", err)
		}
		work.Wait()
		if _, err := a.Authenticate(t.Context(), secret); !sandbox.CodeInvalidAPIKey.Is(err) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestLastUse(t *testing.T) {
	db, _, secret, key := setUp(t)
	a := auth.NewAuthenticator(db, quiet)
	before := time.Now().Truncate(time.Millisecond)
	if _, err := a.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if k, err := db.Key(t.Context(), key.ID); err != nil || !k.LastUsedAt.IsZero() {
		t.Errorf("written at once: %v, %v", k.LastUsedAt, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if k, err := db.Key(t.Context(), key.ID); err != nil || k.LastUsedAt.Before(before) {
		t.Errorf("after Close: %v, %v", k.LastUsedAt, err)
	}
}

func TestEnsureOrg(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	type outcome struct {
		org     store.Org
		project sandbox.Project
		err     error
	}
	outcomes := make([]outcome, 12)
	var work sync.WaitGroup
	for i := range outcomes {
		db := open(t, path)
		work.Go(func() {
			o := &outcomes[i]
			o.org, o.project, o.err = auth.EnsureOrg(t.Context(), db)
		})
	}
	work.Wait()
	first := outcomes[0]
	if !sandbox.ValidID(sandbox.PrefixOrg, first.org.ID) || !sandbox.ValidID(sandbox.PrefixUser, first.org.OperatorUserID) ||
		first.project.Name != "default" || first.project.OrgID != first.org.ID {
		t.Errorf("got %+v", first)
	}
	for _, o := range outcomes {
		if o.err != nil || o != first {
			t.Errorf("got %+v, want %+v", o, first)
		}
	}
}

func TestCreateKey(t *testing.T) {
	db, org, secret, key := setUp(t)
	stored, err := db.KeyByHash(t.Context(), auth.Hash(secret))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(key, stored); d != "" {
		t.Errorf("(-returned +stored):\n%s", d)
	}
	events, err := db.AuditEvents(t.Context(), store.AuditFilter{OrgID: org.ID, ResourceID: key.ID, Page: store.Page{Limit: 10}})
	if err != nil || len(events) != 1 || events[0].Action != "api_key.create" || events[0].Actor.ID != org.OperatorUserID {
		t.Errorf("audit: %+v, %v", events, err)
	}
	for _, e := range events {
		for _, v := range e.Details {
			if s, ok := v.(string); ok && strings.Contains(s, secret[12:]) {
				t.Error("the secret is in the audit trail")
			}
		}
	}

	valid := auth.KeyParams{OrgID: org.ID, Name: "k", Scopes: []string{sandbox.ScopeSandboxRead}, CreatedByUserID: org.OperatorUserID}
	for name, c := range map[string]struct {
		change func(p *auth.KeyParams)
		code   sandbox.Code
	}{
		"no name":         {func(p *auth.KeyParams) { p.Name = "" }, sandbox.CodeInvalidRequest},
		"long name":       {func(p *auth.KeyParams) { p.Name = strings.Repeat("é", 129) }, sandbox.CodeInvalidRequest},
		"no UTF-8":        {func(p *auth.KeyParams) { p.Name = "\xff" }, sandbox.CodeInvalidRequest},
		"no scope":        {func(p *auth.KeyParams) { p.Scopes = nil }, sandbox.CodeInvalidRequest},
		"unknown scope":   {func(p *auth.KeyParams) { p.Scopes = []string{"api_key:create"} }, sandbox.CodeInvalidRequest},
		"unknown project": {func(p *auth.KeyParams) { p.ProjectIDs = []string{"prj_none"} }, sandbox.CodeNotFound},
		"foreign project": {func(p *auth.KeyParams) { p.OrgID = "org_other"; p.ProjectIDs = []string{defaultProject(t, db)} }, sandbox.CodeNotFound},
	} {
		p := valid
		c.change(&p)
		if _, _, err := auth.CreateKey(t.Context(), db, p); !c.code.Is(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	p := valid
	p.ProjectIDs = []string{defaultProject(t, db), defaultProject(t, db)}
	_, restricted, err := auth.CreateKey(t.Context(), db, p)
	if err != nil || len(restricted.ProjectIDs) != 1 {
		t.Errorf("got %+v, %v", restricted, err)
	}
	if r, err := audit.Verify(t.Context(), db, org.ID); err != nil || !r.OK || r.Checked != 2 {
		t.Errorf("chain: %+v, %v", r, err)
	}
}

func defaultProject(t *testing.T, s store.Store) string {
	t.Helper()
	_, p, err := auth.EnsureOrg(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p.ID
}

func TestPrincipal(t *testing.T) {
	free := auth.Principal{Scopes: []string{sandbox.ScopeFileRead}, KeyID: "key_1", UserID: "usr_1", Kind: auth.KindAPIKey}
	held := auth.Principal{ProjectIDs: []string{"prj_a"}, UserID: "usr_1", Kind: auth.KindHuman}
	if !free.Has(sandbox.ScopeFileRead) || free.Has(sandbox.ScopeFileWrite) || held.Has("") {
		t.Error("scopes")
	}
	if !free.CanSeeProject("prj_b") || !held.CanSeeProject("prj_a") || held.CanSeeProject("prj_b") {
		t.Error("projects")
	}
	if free.VisibleProjects() != nil || len(held.VisibleProjects()) != 1 {
		t.Error("visible projects")
	}
	if got := free.Actor("ip", "ua"); got != (sandbox.AuditActor{Kind: "api_key", ID: "key_1", IP: "ip", UserAgent: "ua"}) {
		t.Errorf("actor %+v", got)
	}
	if got := held.Actor("", ""); got != (sandbox.AuditActor{Kind: "human", ID: "usr_1"}) {
		t.Errorf("actor %+v", got)
	}
}

func TestSigner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	one, two := open(t, path), open(t, path)
	var signers [2]*auth.Signer
	var work sync.WaitGroup
	for i, db := range []store.Store{one, two} {
		work.Go(func() {
			var err error
			if signers[i], err = auth.NewSigner(t.Context(), db); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	g := auth.Grant{Method: "GET", Resource: "sbx_1", Path: "/workspace/a b", Expires: now.Add(15 * time.Minute), KeyID: "key_1"}
	signature := signers[0].Sign(g)
	if strings.ContainsAny(signature, "+/=&?#% ") {
		t.Errorf("%q has to be escaped", signature)
	}
	got, err := signers[1].Verify(signature, g.Method, g.Resource, g.Path, g.Expires.Add(-time.Millisecond))
	if err != nil || got != g {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = signers[1].Verify(signature, g.Method, g.Resource, g.Path, g.Expires)
	if !errors.Is(err, auth.ErrSignatureExpired) || !sandbox.CodeForbidden.Is(err) {
		t.Errorf("expired: got %v", err)
	}
	for name, c := range map[string][4]string{
		"method":   {signature, "PUT", g.Resource, g.Path},
		"resource": {signature, g.Method, "sbx_2", g.Path},
		"path":     {signature, g.Method, g.Resource, "/workspace/a b/"},
		"shifted":  {signature, g.Method, g.Resource + "/", g.Path[1:]},
		"cut":      {signature[:len(signature)-1], g.Method, g.Resource, g.Path},
		"longer":   {signature + "AA", g.Method, g.Resource, g.Path},
		"huge":     {strings.Repeat("A", 1<<20), g.Method, g.Resource, g.Path},
		"empty":    {"", g.Method, g.Resource, g.Path},
		"not it":   {"!!!", g.Method, g.Resource, g.Path},
	} {
		_, err := signers[0].Verify(c[0], c[1], c[2], c[3], now)
		if !errors.Is(err, auth.ErrSignatureInvalid) || !sandbox.CodeForbidden.Is(err) {
			t.Errorf("%s: got %v", name, err)
		}
		var e *sandbox.Error
		if errors.As(err, &e) && e.Details["reason"] != "signature_invalid" {
			t.Errorf("%s: details %v", name, e.Details)
		}
	}
}

func FuzzVerify(f *testing.F) {
	s, err := auth.NewSigner(f.Context(), fresh(f))
	if err != nil {
		f.Fatal(err)
	}
	now := time.UnixMilli(1_700_000_000_000)
	g := auth.Grant{Method: "GET", Resource: "art_1", Path: "p", Expires: now.Add(time.Minute), KeyID: "key_1"}
	valid := s.Sign(g)
	f.Add(valid, "GET", "art_1", "p")
	f.Add(valid[:60], "GET", "art_1", "p")
	f.Add("", "", "", "")
	f.Fuzz(func(t *testing.T, signature, method, resource, path string) {
		got, err := s.Verify(signature, method, resource, path, now)
		if err == nil && (signature != valid || got.Method != g.Method || got.Resource != g.Resource || got.Path != g.Path) {
			t.Fatalf("%q is taken for %s %s %s", signature, method, resource, path)
		}
		again := auth.Grant{Method: method, Resource: resource, Path: path, Expires: g.Expires, KeyID: "key_1"}
		if back, err := s.Verify(s.Sign(again), method, resource, path, now); err != nil || !back.Expires.Equal(g.Expires) {
			t.Fatalf("own signature: %v", err)
		}
	})
}

func TestSeal(t *testing.T) {
	answer := []byte(`{"previewToken":"pvt_secret"}`)
	sealed, err := auth.Seal("credential", "space", answer)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sealed), "pvt_secret") {
		t.Error("not sealed")
	}
	if again, err := auth.Seal("credential", "space", answer); err != nil || string(again) == string(sealed) {
		t.Errorf("sealed twice alike, %v", err)
	}
	got, err := auth.Open("credential", "space", sealed)
	if err != nil || string(got) != string(answer) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := auth.Open("another", "space", sealed); !errors.Is(err, auth.ErrSealBroken) {
		t.Errorf("another credential: %v", err)
	}
	if _, err := auth.Open("credential", "another", sealed); !errors.Is(err, auth.ErrSealBroken) {
		t.Errorf("another context: %v", err)
	}
	for i := range sealed {
		bad := []byte(string(sealed))
		bad[i] ^= 1
		if _, err := auth.Open("credential", "space", bad); !errors.Is(err, auth.ErrSealBroken) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := auth.Open("credential", "space", sealed[:i]); !errors.Is(err, auth.ErrSealBroken) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	db, _, secret, _ := setUp(b)
	a := authenticator(b, db)
	for b.Loop() {
		if _, err := a.Authenticate(b.Context(), secret); err != nil {
			b.Fatal(err)
		}
	}
}
