#pragma once

#define SYS_memfd_create 279 /* on 64-bit ARM */
