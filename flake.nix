{
  description = "k3s in Rust: a supervisor of unmodified Kubernetes for machines that nobody can reach again";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      each = lib.genAttrs systems;
      pkgsOf = system: nixpkgs.legacyPackages.${system};
      k3sOf = system: self.packages.${system}.k3s;
      imagesOf = system: import ./nix/images.nix { pkgs = pkgsOf system; k3s = k3sOf system; };
    in
    {
      packages = each (
        system:
        let
          k3s = (pkgsOf system).callPackage ./nix/package.nix { };
        in
        {
          inherit k3s;
          default = k3s;
        }
        // lib.mapAttrs' (name: lib.nameValuePair "component-${name}") k3s.components
        // lib.mapAttrs' (name: lib.nameValuePair "image-${name}") (imagesOf system)
      );

      # The same by their place: `nix build .#components.kube`, `nix build .#images.oci`.
      legacyPackages = each (system: {
        inherit (k3sOf system) components;
        images = imagesOf system;
      });

      overlays.default = final: _: { k3s = final.callPackage ./nix/package.nix { }; };

      nixosModules = {
        default = self.nixosModules.k3s;
        k3s =
          { pkgs, lib, ... }:
          {
            imports = [ ./nix/module ];
            services.k3s.package = lib.mkDefault (k3sOf pkgs.stdenv.hostPlatform.system);
          };
      };

      apps = each (system: import ./nix/apps.nix { pkgs = pkgsOf system; k3s = k3sOf system; });

      devShells = each (system: {
        default = import ./nix/shell.nix { pkgs = pkgsOf system; };
      });

      checks = each (
        system:
        {
          package = k3sOf system;
          module = import ./nix/check.nix { inherit lib; pkgs = pkgsOf system; };
        }
        // lib.mapAttrs' (name: lib.nameValuePair "nixos-${name}") (
          import ./nix/tests {
            pkgs = pkgsOf system;
            module = self.nixosModules.k3s;
          }
        )
      );

      formatter = each (system: (pkgsOf system).nixfmt);
    };
}
