#!/bin/sh
# Installs Debian packages so that nothing they bring starts, now or at the next boot.
# usage: install.sh POLICY LOCK PACKAGE…   (POLICY: /usr/sbin/policy-rc.d; LOCK: a file or directory to lock)
set -eu
policy=$1 lock=$2
shift 2
saved=$policy.before-volumed
mark="made by volumed's tests while they install packages"

# Two test runs of one machine take turns: each would otherwise save the other's policy as the machine's own.
exec 9<"$lock"
flock -w 600 9

restore() {
  rm -f "$policy"
  if [ -e "$saved" ] || [ -L "$saved" ]; then mv "$saved" "$policy"; fi
}
# A run that was killed outright has left its policy behind; with nothing saved there was none before it.
if grep -qs "$mark" "$policy"; then restore; fi
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$saved"; fi
trap restore EXIT
trap 'exit 1' HUP INT TERM
printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
before=$(ls /etc/init.d 2>/dev/null || true)
install() {
  apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install --no-install-recommends "$@" 9<&-
}
# The lists are fetched only where they are missing or name what the mirror no longer has.
if ! install "$@"; then
  apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update 9<&-
  install "$@"
fi
for service in $(ls /etc/init.d 2>/dev/null || true); do
  case " $(echo $before) " in
    *" $service "*) ;;
    *) update-rc.d "$service" disable || true ;;
  esac
done
