#!/bin/sh
# Become one box: launch.sh MACHINE LOWER[:LOWER] DISK BRIDGE VETH MAC ADDRESS/LENGTH
# The overlay, the network namespace and the veth live and die with the box's processes: a box that is killed
# at any moment leaves no mount and no interface that somebody would have to find.
set -eu
if [ "${launch_stage:-}" != inside ]; then
    exec 9</proc/self/ns/net
    launch_stage=inside exec unshare --mount --propagation private --net /bin/sh "$0" "$@"
fi
unset launch_stage
machine=$1 lower=$2 disk=$3 bridge=$4 veth=$5 mac=$6 address=$7

# By its newer call mount(8) passes on 255 bytes an option at most: two paths may be longer.
LIBMOUNT_FORCE_MOUNT2=always mount -t overlay box -o "lowerdir=$lower,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
# nspawn refuses to clean its directory there where /run is no tmpfs.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=0755 tmpfs /run/systemd/nspawn

ip link add host0 address "$mac" type veth peer name "$veth" netns /proc/self/fd/9
ip link set lo up
ip address add "$address" dev host0
ip link set host0 up
nsenter --net=/proc/self/fd/9 ip link set "$veth" master "$bridge" up
exec 9<&-

# cgroup v2 inside, also where the outer machine is a hybrid.
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
# CAP_NET_ADMIN, as root has on a real machine: a firewall is part of what is deployed.
exec systemd-nspawn --quiet --boot --register=no --keep-unit --settings=no --link-journal=no \
    --resolv-conf=off --timezone=off --console=read-only \
    --machine="$machine" --directory="$disk/root" --bind="$disk/lib:/var/lib" \
    --capability=CAP_NET_ADMIN --network-namespace-path=/proc/self/ns/net </dev/null
