{
  machine.services.k3s.manifests = {
    absent = {
      enable = false;
      content = {
        apiVersion = "v1";
        kind = "ConfigMap";
        metadata.name = "absent";
      };
    };
    foo-namespace.content = {
      apiVersion = "v1";
      kind = "Namespace";
      metadata.name = "foo";
    };
    job.content = [
      {
        apiVersion = "batch/v1";
        kind = "Job";
        metadata = {
          name = "hello";
          namespace = "default";
        };
        spec.template.spec = {
          restartPolicy = "Never";
          containers = [
            {
              name = "hello";
              image = "docker.io/k3s-rs/demo:0.1.0";
              command = [ "echo" "Hello, world!" ];
            }
          ];
        };
      }
    ];
  };
}
