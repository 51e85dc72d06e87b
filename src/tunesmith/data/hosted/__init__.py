"""What hosted fine-tuning services (OpenAI, Azure OpenAI) ask of a file, and how they put it when they refuse one."""

from tunesmith.data.hosted.errors import COOKBOOK, ServiceError, service_error, wrong_method_error
from tunesmith.data.hosted.rules import HostedCheck, Method, check_for_service

__all__ = [
    "COOKBOOK",
    "HostedCheck",
    "Method",
    "ServiceError",
    "check_for_service",
    "service_error",
    "wrong_method_error",
]
