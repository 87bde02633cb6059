#!/bin/sh
# With TLS=files: a certificate that nobody could use is said before nginx starts, which itself reads it when clients come.
# The entrypoint of the nginx image runs this; the native way has looked by then (stack/certificate.py).
set -eu

file=${NGINX_CERTIFICATES}/site.pem
refuse() {
    echo "TLS=files: site.pem in TLS_FOLDER cannot be used: $1 (docs/https.md)" >&2
    exit 1
}
[ -x "${NGINX_CERTIFICATES}" ] || refuse "nginx (user $(id -u), group $(id -g)) may not enter the folder"
[ -e "$file" ] || refuse "it is not there"
[ -r "$file" ] || refuse "nginx (user $(id -u), group $(id -g)) may not read it"
[ -s "$file" ] || refuse "it is empty"
# nginx reads a file that is no variable at its start, and knows whether the key fits.
cat >"${NGINX_RUN}/certificate.conf" <<CONF
pid ${NGINX_RUN}/certificate.pid;
events {}
http {
    client_body_temp_path ${NGINX_RUN}/body;
    proxy_temp_path ${NGINX_RUN}/proxy;
    fastcgi_temp_path ${NGINX_RUN}/fastcgi;
    uwsgi_temp_path ${NGINX_RUN}/uwsgi;
    scgi_temp_path ${NGINX_RUN}/scgi;
    server {
        listen unix:${NGINX_RUN}/certificate.socket ssl;
        ssl_certificate $file;
        ssl_certificate_key $file;
    }
}
CONF
said=$(nginx -t -q -e stderr -c "${NGINX_RUN}/certificate.conf" 2>&1) || refuse "$(echo "$said" | head -n 1)"
rm -f "${NGINX_RUN}/certificate.conf" "${NGINX_RUN}/certificate.pid" "${NGINX_RUN}/certificate.socket"
if ! openssl x509 -checkend 0 -noout -in "$file" >/dev/null 2>&1; then
    echo "TLS=files: site.pem in TLS_FOLDER has expired: browsers refuse it (docs/https.md)" >&2
fi
