#!/bin/bash
# What a container of the training image starts with, as in RunPod's own images: the public key from the environment,
# host keys made at boot with their fingerprints in the log, sshd, and then nothing.
# As root on port 22. As any other user, whom sshd then lets in alone, on port 2222.
set -eu
home=$(getent passwd "$(id -u)" | cut -d: -f6) || home=
if [ -z "$home" ]; then
  echo "this image knows no user of id $(id -u): start it as root, or as the user trainer" >&2
  exit 1
fi
if [ -n "${PUBLIC_KEY:-}" ]; then
  if ! ssh-keygen -lf - <<<"$PUBLIC_KEY" >/dev/null 2>&1; then
    echo "PUBLIC_KEY is no public key of SSH. Set it to the content of a .pub file, such as ~/.ssh/id_ed25519.pub" >&2
    exit 1
  fi
  mkdir -p -m 700 "$home/.ssh"
  grep -qsxF "$PUBLIC_KEY" "$home/.ssh/authorized_keys" || echo "$PUBLIC_KEY" >>"$home/.ssh/authorized_keys"
  chmod 600 "$home/.ssh/authorized_keys"
elif [ ! -s "$home/.ssh/authorized_keys" ]; then
  echo "PUBLIC_KEY is not set, and so nobody could log in. Set it to the content of a .pub file" >&2
  exit 1
fi

if [ "$(id -u)" = 0 ]; then
  prefix='' port=22 options=(-o PermitRootLogin=prohibit-password)
  mkdir -p /run/sshd
else
  prefix=$home/.ssh/host port=2222 options=(-o UsePAM=no -o PidFile=none)
  mkdir -p "$prefix/etc/ssh"
fi
ssh-keygen -A ${prefix:+-f "$prefix"} >/dev/null
for key in "$prefix"/etc/ssh/ssh_host_*_key; do
  ssh-keygen -lf "$key.pub"
  options+=(-h "$key")
done
exec /usr/sbin/sshd -D -e -p "$port" -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no "${options[@]}"
