# One version of the site. `machine` is our own machine image, imported: no registry is asked.
FROM conpaas-bench-machine
ENV PHP_INI_SCAN_DIR=:/etc/peer
COPY php.ini /etc/peer/peer.ini
COPY fpm.conf haproxy.cfg /etc/peer/
COPY site /srv/site
STOPSIGNAL SIGQUIT
CMD ["/usr/sbin/php-fpm8.2", "--nodaemonize", "--fpm-config", "/etc/peer/fpm.conf"]
