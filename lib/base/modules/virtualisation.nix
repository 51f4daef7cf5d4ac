# Containers within the machine: podman for everyone, docker by its socket.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ./options.nix { inherit lib; }) yes;
  cfg = config.virtualisation;
  toml = pkgs.formats.toml { };
  json = pkgs.formats.json { };
  strings =
    default: description:
    mkOption {
      type = types.listOf types.str;
      inherit default description;
    };
  autoPrune = {
    enable = yes false "Whether what is unused is removed now and then.";
    flags = strings [ ] "Arguments of the removal.";
    dates = mkOption {
      type = types.str;
      default = "weekly";
      description = "When, as systemd.time(7).";
    };
  };
in
{
  options.virtualisation = {
    containers = {
      enable = yes false "Whether the files that container tools share are there.";
      ociSeccompBpfHook.enable = mkEnableOption "the OCI seccomp BPF hook, which this base does not have";
      containersConf.settings = mkOption {
        inherit (toml) type;
        default = { };
        description = "Settings of containers.conf.";
      };
      storage.settings = mkOption {
        inherit (toml) type;
        default = { };
        description = "Settings of storage.conf.";
      };
      registries = {
        search = strings [
          "docker.io"
          "quay.io"
        ] "Where images without a registry are looked for.";
        insecure = strings [ ] "Registries without TLS.";
        block = strings [ ] "Registries that are refused.";
      };
      policy = mkOption {
        type = types.attrs;
        default = { };
        description = "Settings of policy.json.";
      };
    };
    podman = {
      enable = yes false "Whether podman is there.";
      package = lib.mkPackageOption pkgs "podman" { };
      dockerCompat = yes false "Whether `docker` is podman.";
      dockerSocket.enable = yes false "Whether docker's socket is podman's.";
      networkSocket.enable = yes false "Whether podman answers over the network. This base sets up no such service.";
      enableNvidia = yes false "Accepted; GPUs are the host's.";
      extraPackages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Packages podman runs.";
      };
      extraRuntimes = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Runtimes besides crun.";
      };
      defaultNetwork.settings = mkOption {
        inherit (json) type;
        default = { };
        description = "Settings of the network `podman`.";
      };
      inherit autoPrune;
    };
    docker = {
      enable = yes false "Whether the docker daemon is there. On this base it starts with the first client, whatever `enableOnBoot` says: where the host does not let it start, the machine is whole.";
      package = mkOption {
        type = types.package;
        default = pkgs.docker;
        defaultText = lib.literalExpression "pkgs.docker";
        description = "The docker package.";
      };
      enableOnBoot = yes true "Accepted; the daemon starts with the first client.";
      listenOptions = strings [ "/run/docker.sock" ] "Where it listens.";
      daemon.settings = mkOption {
        inherit (json) type;
        default = { };
        description = "Settings of daemon.json.";
      };
      storageDriver = mkOption {
        type = types.nullOr (
          types.enum [
            "aufs"
            "btrfs"
            "devicemapper"
            "overlay"
            "overlay2"
            "zfs"
          ]
        );
        default = null;
        description = "How layers are kept.";
      };
      logDriver = mkOption {
        type = types.enum [
          "none"
          "json-file"
          "syslog"
          "journald"
          "gelf"
          "fluentd"
          "awslogs"
          "splunk"
          "etwlogs"
          "gcplogs"
          "local"
        ];
        default = "journald";
        description = "Where containers log.";
      };
      liveRestore = yes true "Whether containers outlive the daemon.";
      extraOptions = mkOption {
        type = types.separatedString " ";
        default = "";
        description = "Arguments of the daemon.";
      };
      extraPackages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        description = "Packages the daemon runs.";
      };
      rootless = {
        enable = yes false "Whether each user has a daemon of their own. This base sets up no such service.";
        setSocketVariable = yes false "Accepted.";
      };
      inherit autoPrune;
    };
    oci-containers.backend = mkOption {
      type = types.enum [
        "podman"
        "docker"
      ];
      default = "podman";
      description = "What runs `containers`.";
    };
    libvirtd.enable = yes false "Whether libvirtd is there. This base sets up no such service.";
    waydroid.enable = yes false "Whether Waydroid is there. This base has none.";
  };

  config = lib.mkMerge [
    {
      assertions =
        map
          (what: {
            assertion = !what.on;
            message = "the debian base does not set up `${what.name}'";
          })
          [
            {
              name = "virtualisation.libvirtd.enable";
              on = cfg.libvirtd.enable;
            }
            {
              name = "virtualisation.waydroid.enable";
              on = cfg.waydroid.enable;
            }
            {
              name = "virtualisation.docker.rootless.enable";
              on = cfg.docker.rootless.enable;
            }
            {
              name = "virtualisation.podman.networkSocket.enable";
              on = cfg.podman.networkSocket.enable;
            }
          ];
    }
    (lib.mkIf cfg.containers.enable {
      virtualisation.containers = {
        containersConf.settings = {
          network.cni_plugin_dirs = lib.mkDefault [ "/usr/lib/cni" ];
          engine.runtime = lib.mkDefault "crun";
          # Debian's kernel keyring and the host's cgroups are not the machine's.
          containers.keyring = lib.mkDefault false;
        };
        storage.settings.storage = {
          driver = lib.mkDefault "overlay";
          graphroot = lib.mkDefault "/var/lib/containers/storage";
          runroot = lib.mkDefault "/run/containers/storage";
        };
      };
      environment.etc = {
        "containers/containers.conf".source =
          toml.generate "containers.conf" cfg.containers.containersConf.settings;
        "containers/storage.conf".source = toml.generate "storage.conf" cfg.containers.storage.settings;
        "containers/registries.conf".source = toml.generate "registries.conf" {
          unqualified-search-registries = cfg.containers.registries.search;
          registry =
            map (location: {
              inherit location;
              insecure = true;
            }) cfg.containers.registries.insecure
            ++ map (location: {
              inherit location;
              blocked = true;
            }) cfg.containers.registries.block;
        };
        "containers/policy.json".source = json.generate "policy.json" (
          if cfg.containers.policy != { } then
            cfg.containers.policy
          else
            { default = [ { type = "insecureAcceptAnything"; } ]; }
        );
      };
    })
    (lib.mkIf cfg.podman.enable {
      assertions = [
        {
          assertion = cfg.podman.dockerCompat -> !cfg.docker.enable;
          message = "`virtualisation.podman.dockerCompat' and `virtualisation.docker.enable' both give `docker': choose one";
        }
      ];
      virtualisation.containers.enable = true;
      environment.systemPackages = [
        cfg.podman.package
        pkgs.crun
        pkgs.uidmap
        pkgs.slirp4netns
        pkgs.fuse-overlayfs
        pkgs.passt
        pkgs.nftables
        pkgs.netavark
        pkgs.aardvark-dns
      ]
      ++ cfg.podman.extraPackages
      ++ cfg.podman.extraRuntimes
      ++ lib.optional cfg.podman.dockerCompat (
        pkgs.writeShellScriptBin "docker" ''exec /usr/bin/podman "$@"''
      );
      users.groups.podman = { };
      systemd.sockets.podman = {
        description = "Podman API Socket";
        wantedBy = [ "sockets.target" ];
        listenStreams = [
          "/run/podman/podman.sock"
        ]
        ++ lib.optional cfg.podman.dockerSocket.enable "/run/docker.sock";
        socketConfig = {
          SocketMode = "0660";
          SocketGroup = "podman";
        };
      };
      systemd.services.podman = {
        description = "Podman API Service";
        requires = [ "podman.socket" ];
        after = [ "podman.socket" ];
        serviceConfig = {
          Type = "exec";
          KillMode = "process";
          Delegate = true;
          ExecStart = "/usr/bin/podman system service";
        };
      };
      systemd.services.podman-prune = lib.mkIf cfg.podman.autoPrune.enable {
        description = "Prune podman resources";
        restartIfChanged = false;
        unitConfig.X-StopOnRemoval = false;
        serviceConfig.Type = "oneshot";
        script = "/usr/bin/podman system prune -f ${toString cfg.podman.autoPrune.flags}";
        startAt = cfg.podman.autoPrune.dates;
      };
    })
    (lib.mkIf cfg.docker.enable {
      environment.systemPackages = [ cfg.docker.package ] ++ cfg.docker.extraPackages;
      users.groups.docker.gid = 131;
      virtualisation.docker.daemon.settings = {
        group = lib.mkDefault "docker";
        hosts = [ "fd://" ];
        log-driver = lib.mkDefault cfg.docker.logDriver;
        live-restore = lib.mkDefault cfg.docker.liveRestore;
        storage-driver = lib.mkIf (cfg.docker.storageDriver != null) (
          lib.mkDefault cfg.docker.storageDriver
        );
      };
      systemd.sockets.docker = {
        description = "Docker Socket for the API";
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = cfg.docker.listenOptions;
          SocketMode = "0660";
          SocketUser = "root";
          SocketGroup = "docker";
        };
      };
      systemd.services.docker = {
        description = "Docker Application Container Engine";
        after = [
          "network.target"
          "docker.socket"
        ];
        requires = [ "docker.socket" ];
        path = [ "/usr" ] ++ cfg.docker.extraPackages;
        serviceConfig = {
          Type = "notify";
          ExecStart = "/usr/bin/dockerd --config-file=${json.generate "daemon.json" cfg.docker.daemon.settings} ${cfg.docker.extraOptions}";
          ExecReload = "/usr/bin/kill -s HUP $MAINPID";
          Delegate = true;
          KillMode = "process";
        };
      };
      systemd.services.docker-prune = lib.mkIf cfg.docker.autoPrune.enable {
        description = "Prune docker resources";
        restartIfChanged = false;
        unitConfig.X-StopOnRemoval = false;
        serviceConfig.Type = "oneshot";
        script = "/usr/bin/docker system prune -f ${toString cfg.docker.autoPrune.flags}";
        startAt = cfg.docker.autoPrune.dates;
      };
    })
  ];
}
