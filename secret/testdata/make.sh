#!/bin/sh
# Writes the fixtures anew with the sops and age-keygen programs in PATH. They
# differ each time: every encryption draws its own keys.
set -eu
cd "$(dirname "$0")"
unset SOPS_AGE_KEY SOPS_AGE_RECIPIENTS SOPS_CONFIG || true
rm -f ./*.yaml ./*.txt sops.config
for who in host other rotated; do age-keygen -o "$who.txt" 2>/dev/null; done
host=$(age-keygen -y host.txt) other=$(age-keygen -y other.txt) rotated=$(age-keygen -y rotated.txt)
export SOPS_AGE_KEY_FILE="$PWD/host.txt"
data="--encrypted-regex ^data\$"

plain() { cat <<'PLAIN'
# A comment of the file stays readable.
apiVersion: reconciler/v1alpha1
kind: Secret
metadata: {name: web}
spec:
  data:
    # a comment among the data is encrypted
    user-data: |
      #cloud-config
      password: correct horse
    token: s3cr3t # and so is one behind a value
    grüße: "Zoë ☂ 你好"
    empty: ""
    int: 42
    negative: -7
    octal: 0o17
    float: 1.50
    large: 1e21
    yes: true
    no: false
    quoted: "true"
    when: 2026-11-22T10:00:00Z
    bytes: !!binary aGVsbG8=
    nothing: null
PLAIN
}
plain > plain.yaml
sops encrypt $data --age "$host" plain.yaml > data.yaml
sops encrypt --age "$host" plain.yaml > everything.yaml
cat > sops.config <<CONFIG
creation_rules:
  - path_regex: mac-only
    mac_only_encrypted: true
    encrypted_regex: ^data\$
    age: $host
  - path_regex: comments
    encrypted_comment_regex: among
    age: $host
  - path_regex: shamir
    shamir_threshold: 2
    encrypted_regex: ^data\$
    key_groups:
      - age: [$host]
      - age: [$other]
      - age: [$rotated]
CONFIG
for rule in mac-only comments shamir; do
  sops --config sops.config encrypt --filename-override "$rule.yaml" plain.yaml > "$rule.yaml"
done
sops encrypt --encrypted-suffix -data --age "$host" plain.yaml > suffix.yaml
sops encrypt --unencrypted-regex '^(apiVersion|kind|metadata)$' --age "$host" plain.yaml > unencrypted-regex.yaml
sops encrypt $data --age "$other,$host" plain.yaml > two-recipients.yaml
sops encrypt $data --age "$other" plain.yaml > other-recipient.yaml
cp data.yaml rotated-key.yaml
sops rotate --in-place --add-age "$rotated" --rm-age "$host" rotated-key.yaml

cat > nested.plain.yaml <<'PLAIN'
spec:
  data:
    a:
      b: {c: deep, "d:e": colon}
      list:
        # in a list
        - one
        - [two, {three: 3}]
        - ""
        - four # behind
    anchor: &x anchored
    alias: *x
PLAIN
sops encrypt $data --age "$host" nested.plain.yaml > nested.yaml

{ plain; echo "---"; plain | sed 's/name: web/name: db/; s/correct horse/battery staple/'
  printf -- '---\n# a machine in the same file\napiVersion: reconciler/v1alpha1\nkind: Network\nmetadata: {name: front}\nspec: {user: {}}\n'
} > documents.plain.yaml
sops encrypt $data --age "$host" documents.plain.yaml > documents.yaml

# For the end-to-end tests: a Secret, and what sops makes of it later on.
cat > machine.yaml <<PLAIN
apiVersion: reconciler/v1alpha1
kind: Secret
metadata: {name: web}
spec:
  data:
    user-data: |
      #cloud-config
      # canary-one-7d793037a076
    meta-data: "{role: canary-meta-0cc175b9c0f1}"
    token: canary-token-92eb5ffee6ae
PLAIN
sops encrypt --in-place $data --age "$host" machine.yaml
for change in value recipient rotated foreign; do cp machine.yaml "machine-$change.yaml"; done
sops set machine-value.yaml '["spec"]["data"]["user-data"]' '"#cloud-config\n# canary-two-8277e0910d75\n"'
printf 'creation_rules: [{age: "%s,%s"}]\n' "$host" "$other" > sops.config
sops --config sops.config updatekeys --yes machine-recipient.yaml 2>/dev/null
sops rotate --in-place machine-rotated.yaml
sops rotate --in-place --add-age "$other" --rm-age "$host" machine-foreign.yaml

for f in data everything suffix unencrypted-regex mac-only two-recipients nested documents; do
  sops decrypt "$f.yaml" > "$f.decrypted.yaml" # what sops itself reads
done
SOPS_AGE_KEY_FILE=rotated.txt sops decrypt rotated-key.yaml > rotated-key.decrypted.yaml
rm plain.yaml nested.plain.yaml documents.plain.yaml sops.config
