let
  token = {
    environment.etc."k3s-token" = {
      text = "p@s$w0rd";
      mode = "0600";
    };
    services.k3s.tokenFile = "/etc/k3s-token";
  };
  address =
    { config, ... }:
    {
      services.k3s.nodeIP = config.networking.primaryIPAddress;
      services.k3s.settings.flannel-iface = "eth1";
    };
in
{
  server.imports = [
    token
    address
  ];
  agent =
    { nodes, ... }:
    {
      imports = [
        token
        address
      ];
      services.k3s = {
        role = "agent";
        serverAddr = "https://${nodes.server.networking.primaryIPAddress}:6443";
      };
    };
}
