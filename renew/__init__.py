"""TLS=acme: a certificate that comes, and is renewed, by itself."""
