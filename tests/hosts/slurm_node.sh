#!/bin/bash
# PID 1 of a machine of slurm.py's cluster until systemd takes its place, at each of its boots: slurm_node.sh login|node.
# /etc/slurm, the same folder in all of them, holds configuration and keys; /home is shared as well.
set -eu
# A machine has a boot id of its own. Containers show their kernel's, by which all of them would be one.
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id

install -o munge -g munge -m 400 /etc/slurm/munge.key /etc/munge/munge.key
install -d -o slurm -g slurm /var/lib/slurm /var/lib/slurm/slurmctld /var/log/slurm
cat /etc/slurm/environment >/etc/environment
services="munge slurmd"
if [ "$1" = login ]; then
  services="munge slurmctld ssh"
  install -m 600 /etc/slurm/host_key /etc/ssh/ssh_host_ed25519_key
  install -m 644 /etc/slurm/host_key.pub /etc/ssh/ssh_host_ed25519_key.pub
  install -D -m 600 /etc/slurm/key.pub /root/.ssh/authorized_keys
  for user in ops ann lin; do
    [ -e /home/$user ] || cp -r /etc/skel /home/$user
    install -D -m 600 /etc/slurm/key.pub /home/$user/.ssh/authorized_keys
    chown -R $user: /home/$user/.ssh
    chown $user: /home/$user /home/$user/.[!.]*
  done
else
  install -d /var/lib/slurm/slurmd # root's, as slurmd is
  for gpu in 0 1; do mknod -m 666 /dev/fakegpu$gpu c 1 3; done # Slurm takes nothing but a device for a GPU
  if grep -q 'cgroup/v1' /etc/slurm/cgroup.conf; then
    for controller in freezer memory; do mount -o remount,rw,bind /sys/fs/cgroup/$controller; done
  fi
fi
for service in $services; do
  ln -sf /usr/lib/systemd/system/$service.service /etc/systemd/system/multi-user.target.wants/
done
exec /sbin/init
