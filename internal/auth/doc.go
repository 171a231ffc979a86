// Package auth knows who asks: it makes and resolves API keys, signs URLs that
// stand in for a key, and seals stored answers that hold secrets. It knows the
// store contract and the domain, and nothing of HTTP.
package auth
