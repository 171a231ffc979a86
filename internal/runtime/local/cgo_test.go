//go:build cgo

package local_test

const cgo = true
