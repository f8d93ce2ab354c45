"""Pure: a request body to a Query. Canonical form, scope, fingerprints, traits, controls."""
