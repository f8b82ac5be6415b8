{
  machine = {
    # A file of the machine's own, which the test changes.
    services.k3s.configPath = "/etc/k3s.yaml";
    environment.etc."k3s.yaml" = {
      text = "node-label: [site=one]\n";
      mode = "0644";
    };
  };
}
