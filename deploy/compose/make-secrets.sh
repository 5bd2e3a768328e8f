#!/bin/sh
# Makes each secret of the Compose stack once, readable by the one user that needs it.
# Prometheus and the service share the token, so it is readable inside the containers that
# mount the volume, and nowhere else.
set -eu
folder="${1:-/secrets}"
umask 077

random() {
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

keep() { # name, mode, owner, content
    if [ ! -s "$folder/$1" ]; then
        printf '%s' "$4" > "$folder/$1.new"
        chmod "$2" "$folder/$1.new"
        chown "$3" "$folder/$1.new"
        mv "$folder/$1.new" "$folder/$1"
    fi
}

service_user="${SERVICE_OWNER:-10001:10001}"
postgres_user="${POSTGRES_OWNER:-70:70}"
grafana_user="${GRAFANA_OWNER:-472:0}"

chmod 755 "$folder"
keep admin_token 444 "$service_user" "gw_$(random)"
keep clickhouse_password 400 "$service_user" "$(random)"
keep grafana_password 400 "$grafana_user" "$(random)"
# The password is the same in both files, so they are made together or not at all.
if [ ! -s "$folder/postgres_password" ] || [ ! -s "$folder/pgpass" ]; then
    rm -f "$folder/postgres_password" "$folder/pgpass"
    password="$(random)"
    keep pgpass 600 "$service_user" "*:*:*:gradwarden:$password"
    keep postgres_password 400 "$postgres_user" "$password"
fi
