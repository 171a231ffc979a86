// Package templates carries the built-in template definitions, which package
// template reads. To define a template is to write a YAML file here; the fields
// are those of template.Definition.
package templates

import "embed"

// Files holds the definitions (*.yaml) and the trees they name.
//
//go:embed *.yaml npm rootfs
var Files embed.FS
