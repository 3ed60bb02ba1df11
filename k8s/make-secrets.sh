#!/usr/bin/env bash
# Makes the secret files of an overlay from the templates beside them: *.example, in which @name@
# stands for a random value, the same wherever the name is. Overwrites nothing.
set -euo pipefail
cd "$(dirname "$0")/overlays"
if [[ $# != 1 || ! -d $1 ]]; then
    echo "usage: $0 OVERLAY, one of: $(echo */)" >&2
    exit 2
fi
mapfile -t templates < <(find "$1" -name '*.example' | sort)
for template in "${templates[@]}"; do
    if [[ -e ${template%.example} ]]; then
        echo "k8s/overlays/${template%.example} is there already; nothing was changed." >&2
        echo "Delete the files first if the secrets are to be new." >&2
        exit 2
    fi
done

umask 077
values=$(mktemp)
trap 'rm -f "$values"' EXIT
for name in $(grep -ohE '@[a-z0-9-]+@' "${templates[@]}" | sort -u); do
    echo "s/$name/$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')/g" >> "$values"
done
for template in "${templates[@]}"; do
    sed -f "$values" "$template" > "${template%.example}"
    echo "k8s/overlays/${template%.example}"
done
if files=$(grep -l '<.*>' "${templates[@]%.example}"); then
    printf 'fill in what stands in <> in:\n%s\n' "$files"
fi
