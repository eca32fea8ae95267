#!/bin/sh
# Makes what compose.yaml needs, once: a CA, certificates of nginx and the database, the database's password, and the
# key for the secrets in the database.
# Each service gets its own volume with its own files. TOP is for tests: the folder in which the volumes are.
set -eu
umask 077
TOP=${TOP:-}

certificate() {  # NAME SUBJECT_ALT_NAME FOLDER
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
    -keyout "$3/$1.key" -out "$3/$1.csr" 2>/dev/null
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n' "$2" > "$3/$1.ext"
  openssl x509 -req -in "$3/$1.csr" -CA "$TOP/tls/ca.pem" -CAkey "$work/ca.key" -days 825 -sha256 \
    -extfile "$3/$1.ext" -out "$3/$1.pem" 2>/dev/null
  rm "$3/$1.csr" "$3/$1.ext"
}

if [ ! -e "$TOP/tls/ca.pem" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -sha256 \
    -subj "/CN=Example CA of this machine" -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$work/ca.key" -out "$work/ca.pem" 2>/dev/null
  cp "$work/ca.pem" "$TOP/tls/ca.pem"
  certificate database DNS:database "$TOP/database-tls"
  certificate nginx DNS:localhost,DNS:ccp.example.com,IP:127.0.0.1 "$TOP/nginx-tls"
  mv "$TOP/nginx-tls/nginx.pem" "$TOP/nginx-tls/fullchain.pem"
  mv "$TOP/nginx-tls/nginx.key" "$TOP/nginx-tls/privkey.pem"
fi
if [ ! -e "$TOP/pool-secrets/pgpass" ]; then
  password=$(openssl rand -hex 24)
  printf '%s' "$password" > "$TOP/database-secrets/password"
  printf 'database:5432:ccp:ccp:%s\n' "$password" > "$TOP/pool-secrets/pgpass"
fi
if [ ! -e "$TOP/pool-secrets/secrets-key" ]; then
  openssl rand -base64 32 > "$TOP/pool-secrets/secrets-key"
fi

chmod 755 "$TOP/tls" "$TOP/database-tls" "$TOP/nginx-tls" "$TOP/pool-secrets" "$TOP/database-secrets"
chmod 644 "$TOP/tls/ca.pem" "$TOP/database-tls/database.pem" "$TOP/nginx-tls/fullchain.pem"
# The database's image runs as user 999, the pool as 10001. nginx reads its key as root.
if [ "$(id -u)" = 0 ]; then
  chown 999:999 "$TOP/database-tls/database.key" "$TOP/database-secrets/password"
  chown 10001:10001 "$TOP/pool-secrets/pgpass" "$TOP/pool-secrets/secrets-key"
fi
