// Package api puts the use cases on the wire: routes, credentials, scopes,
// validation, idempotency, envelopes, streams and the OpenAPI document. It is the
// only package that knows HTTP. It knows control's inputs and the domain's
// records; it may not know SQL, the runtime or the guest.
//
// Every request takes the same way, in the order of contract section 1.2: route,
// method, credential, rate limit, suspension, scope, validation, idempotency
// lookup; then a handler asks control, which checks visibility, state and quota.
// Handlers are typed; the types, with the rules in their tags, are the source of
// both the validation and the document.
package api
