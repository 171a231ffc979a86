package api

import (
	"crypto/rand"
	"net"
	"net/http"
	"strings"

	"crownest.dev/crownest/internal/auth"
	"crownest.dev/crownest/internal/sandbox"
)

// Headers that stand for a signed-in person on a server run with --dev.
const (
	headerOrgID  = "X-Crownest-Org-Id"
	headerRole   = "X-Crownest-Role"
	headerUserID = "X-Crownest-User-Id"
)

// processSecret seals answers to callers without a key of their own: nobody else
// can open them, and nobody at all once this process has ended.
var processSecret = rand.Text()

// DevSessions says who may be claimed to be signed in. For development only.
type DevSessions struct {
	OrgID  string
	UserID string // who it is if the headers name nobody
}

// devSession returns the person whom a request's headers claim to be. Only a
// server run with --dev believes them, and only on loopback, under a loopback
// name: a page that a browser loaded from elsewhere cannot have both.
func (s *Server) devSession(r *http.Request) (auth.Principal, bool) {
	dev := s.opts.Dev
	if dev == nil || r.Header.Get(headerOrgID) != dev.OrgID {
		return auth.Principal{}, false
	}
	if role := r.Header.Get(headerRole); role != "owner" && role != "admin" {
		return auth.Principal{}, false
	}
	user := r.Header.Get(headerUserID)
	if user == "" {
		user = dev.UserID
	}
	if !sandbox.ValidID(sandbox.PrefixUser, user) || !remoteAddr(r).IsLoopback() || !loopbackName(r.Host) {
		return auth.Principal{}, false
	}
	return auth.Principal{OrgID: dev.OrgID, UserID: user, Kind: auth.KindHuman, Scopes: sandbox.AllScopes}, true
}

// loopbackName reports whether a Host header names this machine itself.
func loopbackName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
