#!/bin/sh
# Unpack Debian (or Ubuntu) packages into a folder, without root and without installing anything:
#   fetch_debian_packages.sh FOLDER PACKAGE...
# The programs are then in FOLDER/usr/bin.
set -eu

folder=$1
shift
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
  echo "fetch_debian_packages: no apt-get here; install $* and put their programs on PATH" >&2
  exit 1
}
mkdir -p "$folder/archives/partial" "$folder/lists/partial"
folder=$(cd "$folder" && pwd)
cd "$folder/archives"
apt-get download "$@" >/dev/null 2>&1 || {
  # No lists of packages yet, as in a fresh container: fetch some of our own.
  own="-o Dir::State::Lists=$folder/lists -o Dir::Cache=$folder -o APT::Sandbox::User="
  apt-get $own update >/dev/null && apt-get $own download "$@" >/dev/null
}
for archive in *.deb; do
  dpkg-deb --extract "$archive" "$folder"
done
rm -rf "$folder/archives" "$folder/lists" "$folder"/*.bin
