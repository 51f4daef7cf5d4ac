# Names and addresses. A container's interfaces, routes and resolver come from its driver.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./options.nix { inherit lib; }) free strings yes;
  cfg = config.networking;
  ports =
    type: description:
    mkOption {
      type = types.listOf type;
      default = [ ];
      inherit description;
    };
  portRange = types.submodule {
    options = {
      from = mkOption {
        type = types.port;
        description = "First port.";
      };
      to = mkOption {
        type = types.port;
        description = "Last port.";
      };
    };
  };
in
{
  options.networking = {
    hostName = mkOption {
      type = types.strMatching "^$|^[[:alnum:]]([[:alnum:]_-]{0,61}[[:alnum:]])?$";
      default = "nixos";
      description = "Name of the machine; empty: what the host gives it.";
    };
    domain = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Its domain.";
    };
    fqdn = mkOption {
      type = types.str;
      default = if cfg.domain == null then cfg.hostName else "${cfg.hostName}.${cfg.domain}";
      defaultText = "host name and domain";
      description = "Its full name.";
    };
    fqdnOrHostName = mkOption {
      type = types.str;
      default = cfg.fqdn;
      defaultText = "the full name";
      readOnly = true;
      description = "Its full name, or its name.";
    };
    hostId = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Its 32-bit id as eight hexadecimal digits.";
    };
    hosts = mkOption {
      type = types.attrsOf (types.listOf types.str);
      default = { };
      description = "Names by address, in `/etc/hosts`.";
    };
    extraHosts = mkOption {
      type = types.lines;
      default = "";
      description = "Further lines of `/etc/hosts`.";
    };
    nameservers = strings "Addresses of name servers; none: what the host uses.";
    search = strings "Domains that are searched.";
    timeServers = strings "Accepted; the clock is the host's.";
    enableIPv6 = yes true "Accepted; the network is the host's.";
    useDHCP = yes false "Accepted; the driver configures the network.";
    useNetworkd = yes false "Accepted; the driver configures the network.";
    useHostResolvConf = yes false "Whether `/etc/resolv.conf` is a copy of the host's.";
    usePredictableInterfaceNames = yes true "Accepted.";
    tempAddresses = mkOption {
      type = types.str;
      default = "default";
      description = "Accepted.";
    };
    dhcpcd = free "Accepted; the driver configures the network.";
    interfaces = free "Accepted; the driver configures the network.";
    bridges = free "Accepted; the driver configures the network.";
    defaultGateway = mkOption {
      type = types.nullOr types.anything;
      default = null;
      description = "Accepted; the driver configures the network.";
    };
    networkmanager = free "Accepted; the driver configures the network.";
    wireless = free "Accepted; the driver configures the network.";
    resolvconf = free "Accepted; the driver writes `/etc/resolv.conf`.";
    nat = free "Accepted; the network is the host's.";
    nftables = free "Accepted; the network is the host's.";
    proxy = {
      default = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Proxy of every protocol.";
      };
      httpProxy = mkOption {
        type = types.nullOr types.str;
        default = cfg.proxy.default;
        defaultText = "config.networking.proxy.default";
        description = "Proxy of http.";
      };
      httpsProxy = mkOption {
        type = types.nullOr types.str;
        default = cfg.proxy.default;
        defaultText = "config.networking.proxy.default";
        description = "Proxy of https.";
      };
      noProxy = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "What is reached without one.";
      };
      envVars = mkOption {
        type = types.attrsOf types.str;
        internal = true;
        default =
          lib.optionalAttrs (cfg.proxy.httpProxy != null) { http_proxy = cfg.proxy.httpProxy; }
          // lib.optionalAttrs (cfg.proxy.httpsProxy != null) { https_proxy = cfg.proxy.httpsProxy; }
          // lib.optionalAttrs (cfg.proxy.noProxy != null) { no_proxy = cfg.proxy.noProxy; };
        defaultText = "variables of the proxy";
        description = "Variables that name the proxy.";
      };
    };
    firewall = {
      enable = yes false "Accepted; only forwarded ports reach a machine.";
      allowPing = yes true "Accepted.";
      allowedTCPPorts = ports types.port "Accepted; forward ports with `codchi.ports`.";
      allowedUDPPorts = ports types.port "Accepted; forward ports with `codchi.ports`.";
      allowedTCPPortRanges = ports portRange "Accepted.";
      allowedUDPPortRanges = ports portRange "Accepted.";
      trustedInterfaces = strings "Accepted.";
      interfaces = free "Accepted.";
      checkReversePath = mkOption {
        type = types.either types.bool types.str;
        default = true;
        description = "Accepted.";
      };
      extraCommands = mkOption {
        type = types.lines;
        default = "";
        description = "Accepted.";
      };
    };
  };

  config = {
    environment.variables = cfg.proxy.envVars;
    networking.hosts = {
      "127.0.0.1" = [ "localhost" ];
      "::1" = [ "localhost" ];
      "127.0.0.2" = lib.optional (cfg.hostName != "") cfg.hostName;
    };
    environment.etc = {
      hosts.text =
        lib.concatStrings (
          lib.mapAttrsToList (ip: names: lib.optionalString (names != [ ]) "${ip} ${lib.concatStringsSep " " names}\n") cfg.hosts
        )
        + cfg.extraHosts;
      "host.conf".text = "multi on\n";
    }
    // lib.optionalAttrs (cfg.hostName != "") { hostname.text = "${cfg.hostName}\n"; }
    // lib.optionalAttrs (cfg.nameservers != [ ]) {
      "resolv.conf".text =
        lib.concatMapStrings (n: "nameserver ${n}\n") cfg.nameservers
        + lib.optionalString (cfg.search != [ ]) "search ${lib.concatStringsSep " " cfg.search}\n";
    };
  };
}
