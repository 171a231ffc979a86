// Package repo holds no code, only tests of the repository as a whole: that
// every package says what it is for, that packages import only what the
// architecture allows, and that no file names a machine or a mirror.
package repo
