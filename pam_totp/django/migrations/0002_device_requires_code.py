"""Let every device require a code: correct the rows of older versions, and add the constraint."""

from __future__ import annotations

from typing import Any

import django
from django.db import migrations, models

CONDITION = "condition" if django.VERSION >= (5, 1) else "check"  # the argument of CheckConstraint


def correct_rows(apps: Any, schema_editor: Any) -> None:
    devices = apps.get_model("pam_totp", "HostDevice").objects.using(schema_editor.connection.alias)
    devices.update(name="default", confirmed=True)


class Migration(migrations.Migration):  # type: ignore[misc]
    dependencies = (("pam_totp", "0001_initial"),)
    operations = (
        migrations.RunPython(correct_rows, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="hostdevice",
            constraint=models.CheckConstraint(
                **{CONDITION: models.Q(name="default", confirmed=True)}, name="pam_totp_device_requires_code"
            ),
        ),
    )
