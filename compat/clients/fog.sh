#!/bin/bash
# fog, which Foreman and Vagrant have their guests from, and the Ruby bindings below it.
# needs /usr/lib/ruby/vendor_ruby/fog/libvirt.rb: ruby-fog-libvirt

version() { dpkg-query -W -f='${Version}' ruby-fog-libvirt; }

play() { ruby -W0 "$CLIENTS/fog.rb" "$DIR" "$ROM" "$(kind)" 2>&1; }
. "$(dirname "$0")/lib.sh"
