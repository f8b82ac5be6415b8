# Programs of the host that k3s and its components start.
pkgs: [
  pkgs.kmod
  pkgs.util-linux
  pkgs.nftables
  pkgs.iptables
  pkgs.iproute2
  pkgs.conntrack-tools
]
