#!/bin/sh
# Makes the vectors beside it anew with gpg and openssl. Run in this folder.
set -eu
dir=$(cd "$(dirname "$0")" && pwd)
export GNUPGHOME="$dir/home"
rm -rf "$GNUPGHOME" "$dir"/*.asc "$dir"/*.gpg "$dir"/*.pem "$dir"/*.sig "$dir"/*.json
mkdir -m 700 "$GNUPGHOME"
trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT
cd "$dir"
digest=sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0
other=sha256:$(printf %064d 1)
payload() { # type reference digest
	printf '{"critical":{"identity":{"docker-reference":"%s"},"image":{"docker-manifest-digest":"%s"},"type":"%s"},"optional":{"creator":"test","timestamp":1767225600}}' "$2" "$3" "$1"
}
simple() { payload "atomic container signature" "$1" "$2"; }
at=20260101T000000!
g() { gpg --batch --quiet --no-permission-warning --pinentry-mode loopback --passphrase '' --trust-model always "$@"; }
newkey() { g --faked-system-time "$1" --quick-gen-key "$2" "$3" sign "$4"; g --armor --export "$2" > "$2.asc"; }
newkey $at owner rsa2048 never
newkey $at stranger rsa2048 never
newkey $at ed25519 ed25519 never
newkey $at expired rsa2048 2026-02-01
newkey $at small rsa1024 never
g --armor --export-secret-keys owner > private.asc
sign() { g --faked-system-time 20260102T000000! --local-user "$1" --output "$2.gpg" "${3:---sign}" ${4:+--digest-algo "$4"}; }
ref=registry.example.com/team/app:1
simple $ref $digest | sign owner good
simple $ref $digest | g --faked-system-time 20260102T000000! --local-user owner --compress-algo none --output uncompressed.gpg --sign
simple $ref $digest | sign ed25519 ed25519
simple $ref $digest | sign stranger stranger
simple $ref $digest | sign expired expired
simple $ref $digest | sign small small
simple $ref $digest | g --faked-system-time 20260102T000000! --local-user owner --digest-algo SHA1 --output sha1.gpg --sign
simple $ref $other | sign owner other-digest
simple registry.example.com/team/app:2 $digest | sign owner other-tag
simple registry.example.com/team/other:1 $digest | sign owner other-name
simple registry.example.com/team/app $digest | sign owner no-tag
payload "cosign container image signature" $ref $digest | sign owner other-type
printf 'hello\n' | sign owner not-json
head -c 200000 /dev/zero | sign owner bomb
simple $ref $digest | g --store --output unsigned.gpg
simple $ref $digest | g --faked-system-time 20260102T000000! --local-user owner --detach-sign --output detached.gpg
simple $ref $digest | g --faked-system-time 20260102T000000! --local-user owner --clearsign --output clear.gpg
simple $ref $digest | g --passphrase secret --symmetric --output encrypted.gpg
simple $ref $digest | g --faked-system-time 20260102T000000! --local-user owner --default-sig-expire 2026-01-20 --sign --output short.gpg
simple $ref $digest | g --faked-system-time 20260102T000000! --local-user owner --local-user stranger --sign --output two.gpg

openssl ecparam -name prime256v1 -genkey -noout -out p256.key
openssl genrsa -out rsa.key 2048 2>/dev/null
openssl genpkey -algorithm ed25519 -out ed.key 2>/dev/null
openssl ecparam -name secp521r1 -genkey -noout -out p521.key
openssl genrsa -out short.key 1024 2>/dev/null
for k in p256 rsa ed p521 short; do openssl pkey -in $k.key -pubout -out $k.pem 2>/dev/null; done
cosign() { payload "cosign container image signature" "$2" "$3" > "$1.json"; openssl dgst -sha256 -sign "${4:-p256}.key" -out "$1.sig" "$1.json"; }
cosign cosign registry.example.com/team/app $digest
cosign cosign-tag $ref $digest
cosign cosign-other-tag registry.example.com/team/app:2 $digest
cosign cosign-other-name registry.example.com/team/other $digest
cosign cosign-other-digest registry.example.com/team/app $other
cosign cosign-rsa registry.example.com/team/app $digest rsa
simple registry.example.com/team/app $digest > cosign-type.json
openssl dgst -sha256 -sign p256.key -out cosign-type.sig cosign-type.json
cp cosign.json cosign-sha1.json
openssl dgst -sha1 -sign p256.key -out cosign-sha1.sig cosign-sha1.json
cp cosign.json cosign-ed.json
openssl pkeyutl -sign -rawin -inkey ed.key -in cosign-ed.json -out cosign-ed.sig
rm -f ./*.key
