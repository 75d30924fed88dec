#!/bin/bash
# go-libvirt: the protocol spoken by pure Go, without libvirt's library.
# needs go: golang-go
# needs /usr/share/gocode/src/github.com/digitalocean/go-libvirt: golang-github-digitalocean-go-libvirt-dev

prepare() { GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS='' go build -o "$CACHE/go-client" "$CLIENTS/go/main.go" 2>&1; }
version() { dpkg-query -W -f='${Version}' golang-github-digitalocean-go-libvirt-dev; }

play() {
    guest gopher "$(disk a.qcow2 vda)"
    step life "$CACHE/go-client" /run/libvirt/libvirt-sock "$DIR/gopher.xml"
}
. "$(dirname "$0")/lib.sh"
