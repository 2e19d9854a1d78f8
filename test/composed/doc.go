// Package composed holds a compose project whose containers say what they see,
// and what each of them has to see. A guest's scenario runs it; docs/compose.md
// may call an attribute working only if an observation here, or a test named
// here, has looked at it from inside a container.
package composed
