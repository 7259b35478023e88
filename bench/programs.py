"""The programs that compare.py sets side by side: how each is configured and started.

On for all of them: one worker or thread, an access log to a file, keep-alive to the backends,
the X-Forwarded fields, and timeouts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


class BenchError(Exception):
    """Something that the person who runs this can put right."""


@dataclass
class Proxy:
    """One program under test: how it is started and where it listens and logs."""

    name: str
    command: list[str]
    port: int
    log: Path
    ready_port: int | None = None  # Accord: wait for /readyz there; else for the port itself.
    environment: dict[str, str] = field(default_factory=dict)
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = None


def backend_config(folder: Path, ports: list[int]) -> str:
    """nginx answering by `return`. A word of its config ends at 4 KiB: 64 KiB is 64 times `$k`."""
    listens = "\n    ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    return f"""
{nginx_head(folder, "backend")}
http {{
  {nginx_folders(folder, "backend")}
  access_log off;
  default_type text/plain;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  server {{
    {listens}
    set $k "{"0123456789abcdef" * 64}";
    location = /1k {{ return 200 "$k"; }}
    location = /64k {{ return 200 "{"$k" * 64}"; }}
  }}
}}
"""


def nginx_head(folder: Path, name: str) -> str:
    """Everything outside of `http`, for one worker in the foreground."""
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"""{user}daemon off;
worker_processes 1;
pid {folder}/{name}.pid;
error_log {folder}/{name}.error.log warn;
events {{ worker_connections 4096; }}"""


def nginx_folders(folder: Path, name: str) -> str:
    """Temporary folders of our own, since the packaged ones belong to somebody else."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n  ".join(f"{kind}_temp_path {folder}/{name}.{kind};" for kind in kinds)


def certificate(folder: Path) -> Path:
    """Make a certificate for localhost, P-256, and its key: one file, as HAProxy wants it."""
    pem, key, cert = (folder / name for name in ("tls.pem", "tls.key", "tls.cert"))
    subprocess.run(
        [program("openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-newkey", "ec",
         "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(cert.read_bytes() + key.read_bytes())
    return pem


def nginx(folder: Path, backends: list[int], pem: Path | None = None) -> Proxy:
    """nginx as a proxy: keep-alive to the backends, the X-Forwarded fields, a log line each."""
    tls = f"""
    ssl_certificate {pem};
    ssl_certificate_key {pem};
    ssl_protocols TLSv1.3;
    ssl_session_cache shared:tls:10m;"""
    port, log = free_port(), folder / "nginx.access.log"
    servers = " ".join(f"server 127.0.0.1:{backend};" for backend in backends)
    config = folder / "nginx.conf"
    config.write_text(f"""
{nginx_head(folder, "nginx")}
http {{
  {nginx_folders(folder, "nginx")}
  access_log {log} combined;
  keepalive_requests 1000000000;
  upstream app {{ {servers} keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} {"ssl" if pem else ""} backlog=4096;{tls if pem else ""}
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
    }}
  }}
}}
""")
    return Proxy("nginx", [program("nginx"), "-c", str(config), "-p", str(folder)], port, log)


def haproxy(folder: Path, backends: list[int], pem: Path | None = None) -> Proxy:
    """HAProxy, one thread; its log goes to its stdout, which is a file, as the others' do."""
    port, log = free_port(), folder / "haproxy.access.log"
    servers = "\n  ".join(f"server s{n} 127.0.0.1:{port}" for n, port in enumerate(backends))
    config = folder / "haproxy.cfg"
    config.write_text(f"""
global
  nbthread 1
  maxconn 4096
  log stdout format raw local0 info
defaults
  mode http
  log global
  option httplog
  option forwardfor
  timeout connect 3s
  timeout client 60s
  timeout server 60s
  timeout http-request 10s
  timeout http-keep-alive 60s
  http-reuse always
frontend web
  bind 127.0.0.1:{port} backlog 4096 {f"ssl crt {pem} ssl-min-ver TLSv1.3" if pem else ""}
  http-request set-header X-Forwarded-Proto {"https" if pem else "http"}
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  default_backend app
backend app
  balance roundrobin
  {servers}
""")
    return Proxy("haproxy", [program("haproxy"), "-db", "-f", str(config)], port, log)


def caddy(folder: Path, backends: list[int]) -> Proxy:
    """Caddy on one processor: GOMAXPROCS beside the pinning, or its scheduler fights itself."""
    port, log = free_port(), folder / "caddy.access.log"
    config = folder / "Caddyfile"
    config.write_text(f"""
{{
  admin off
  auto_https off
}}
http://:{port} {{
  bind 127.0.0.1
  log {{
    output file {log} {{
      roll_disabled
    }}
    format json
  }}
  reverse_proxy {" ".join(f"127.0.0.1:{backend}" for backend in backends)} {{
    lb_policy round_robin
    transport http {{
      keepalive_idle_conns_per_host 128
    }}
  }}
}}
""")
    command = [program("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    environment = {"GOMAXPROCS": "1", "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return Proxy("caddy", command, port, log, environment=environment)


def accord(folder: Path, backends: list[int], lb: str, pem: Path | None = None) -> Proxy:
    """Accord, one worker, everything on that is on by default: log, metrics, timeouts."""
    port, admin_port, log = free_port(), free_port(), folder / "accord.access.log"
    config = folder / "lb.toml"
    config.write_text(f"""
[node]
name = "bench"
data_dir = "{folder}/lb-data"
workers = 1

[admin]
address = "127.0.0.1:{admin_port}"

[access_log]
output = "{log}"

[listener.web]
address = "127.0.0.1:{port}"
{f'tls = {{ cert = "{pem}", key = "{pem}" }}' if pem else ""}

[upstream.app]
backends = [{", ".join(f'"127.0.0.1:{backend}"' for backend in backends)}]
""")
    command = [*shlex.split(lb), "run", "-c", str(config)]
    return Proxy("accord", command, port, log, ready_port=admin_port)


def checkout_lb() -> str:
    """`lb` of this checkout, by this interpreter, installed or not."""
    return shlex.join([sys.executable, "-c", "from lb.cli import main; main()"])


def program(name: str) -> str:
    """Where a program is; Debian keeps servers in /usr/sbin, which is not in everyone's PATH."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        package = {"nginx": "nginx-light"}.get(name, name)
        raise BenchError(f"{name} is not installed: apt-get install {package}")
    return found


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
