-- Daemons that enter with a certificate instead of a key, and the certificates that are not taken any
-- more.

-- SHA-256 of the certificate that the daemon entered with, in hexadecimal digits.
alter table provisioner_daemons add column certificate_fingerprint text;

create table provisioner_certificate_revocations (
    organization_id uuid not null,
    -- SHA-256 of the certificate, in lower-case hexadecimal digits.
    fingerprint text not null,
    reason text not null default '',
    created_by uuid,
    created_at timestamptz not null,
    constraint provisioner_certificate_revocations_pkey primary key (organization_id, fingerprint),
    constraint provisioner_certificate_revocations_organization_id_fkey foreign key (organization_id) references organizations (id) on delete cascade,
    constraint provisioner_certificate_revocations_fingerprint_check check (fingerprint ~ '^[0-9a-f]{64}$')
);
