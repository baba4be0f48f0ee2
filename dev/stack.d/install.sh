#!/bin/sh
# Run by dev/stack, as root: installs the Debian packages named, and sees to it that none of them runs a service of its
# own, now or after a reboot. The stack starts its servers itself, on other ports and with other data.
set -eu

# Packages ask this file whether they may start what they bring; 101 means no. One that is there is the owner's policy.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
# One source of several that does not answer need not matter: the install tells.
apt-get -q update || echo "apt-get update failed; trying with the lists that are there" >&2
apt-get -q -y --no-install-recommends install "$@"

# Only packages that were missing come here, so nobody relies on their services yet.
if [ -d /run/systemd/system ]; then
    for package in "$@"; do
        case $package in *-server) systemctl disable "$package.service" || true ;; esac
    done
fi
