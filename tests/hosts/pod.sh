#!/bin/bash
# PID 1 of a test pod, as the start script of RunPod's images: the public key from the environment, host keys made at
# boot with their fingerprints in the log, sshd, and then nothing. Its environment reaches no SSH session.
set -eu
mkdir -p /root/.ssh /run/sshd
chmod 700 /root/.ssh
echo "$PUBLIC_KEY" >/root/.ssh/authorized_keys
ssh-keygen -A >/dev/null
for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf "$key"; done
exec /usr/sbin/sshd -D -e
