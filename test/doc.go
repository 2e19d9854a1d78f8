// Package test boots guests and watches them: each scenario is one claim about
// what a guest does when a host, a registry, a log host or a contract is as it
// should be, or is not.
//
// The scenarios carry the build tag vm; 'make vm RUN=regexp TIER=core|full'
// runs them, RUN choosing by architecture and sentence. Package scenario is
// their frame, package peers what their guests talk to.
package test
