#!/bin/bash
# Make an image of Debian 13 unless it is there, and print its name: image.sh [hosts|newcomer|slurm].
# hosts: what the test hosts are made of: systemd, sshd, sudo, Python, tmux, rsync. Trainings get a thread each (units here,
# sessions by /etc/environment): several that take all cores spin in each other's way, ten times slower. A user's manager
# gets a second to end: under cgroup v1 no container hears that a group is empty, and the user's next login would wait out
# the two minutes of Debian's unit.
# newcomer: the machine of somebody who has installed what the README asks for, and nothing else.
# slurm: those of hosts with Slurm and munge, for login node and compute nodes alike. Nothing of it starts by itself: each
# of the machines gets its links when it has a configuration (slurm_node.sh).
# No image registry is asked; the packages come from Debian's mirrors.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export CONTAINERS_CONF=$here/containers.conf
kind=${1:-hosts}
image=localhost/lora-forge-test-$kind:$(cat "$here/image.sh" "$here/pod.sh" | sha256sum | cut -c1-12)
if [ "$(id -u)" != 0 ]; then
  echo "the test hosts are made by root: run the tests as root" >&2
  exit 1
fi
hosts=(
  --include=systemd,systemd-sysv,libpam-systemd,dbus,dbus-user-session,openssh-server,sudo,ca-certificates,procps
  --include=python3,python3-pip,python3-venv,rsync,tmux
  --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*_key*'
  --customize-hook="copy-in $here/pod.sh /"
  --customize-hook='useradd="chroot $1 useradd --create-home --shell /bin/bash"; for u in ops ann lin; do $useradd $u; done'
  --customize-hook='echo "ops ALL=(ALL) NOPASSWD: ALL" >"$1"/etc/sudoers.d/ops'
  --customize-hook='mkdir -p "$1"/etc/systemd/system/ssh.service.d
    printf "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\n" >"$1"/etc/systemd/system/ssh.service.d/keys.conf'
  --customize-hook='for manager in system user; do mkdir -p "$1"/etc/systemd/$manager.conf.d
    printf "[Manager]\nDefaultEnvironment=OMP_NUM_THREADS=1\n" >"$1"/etc/systemd/$manager.conf.d/threads.conf; done'
  --customize-hook='mkdir "$1"/etc/systemd/system/user@.service.d
    printf "[Service]\nTimeoutStopSec=1\n" >"$1"/etc/systemd/system/user@.service.d/stop.conf'
)
slurm=(
  "${hosts[@]}"
  --include=slurmctld,slurmd,slurm-client,munge
  --customize-hook='cd "$1"/etc && rm -f munge/munge.key && cd systemd/system/multi-user.target.wants &&
    rm slurmctld.service slurmd.service munge.service ssh.service'
)
newcomer=(--include=python3-venv,make,git,tmux,rsync)
if ! podman image exists "$image"; then
  root=$(mktemp) log=$(mktemp)
  trap 'rm -f "$root" "$log"' EXIT
  declare -n options=$kind
  mmdebstrap --quiet --mode=root --variant=minbase "${options[@]}" trixie - >"$root" 2>"$log" || { cat "$log" >&2; exit 1; }
  podman import --quiet "$root" "$image" >/dev/null
fi
echo "$image"
